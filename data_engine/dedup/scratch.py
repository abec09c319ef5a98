"""A DuckDB that works out of core on the images table of a dataset."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data_engine.dedup.settings import DedupSettings
from data_engine.errors import ConfigError, DatasetError, StorageError
from data_engine.sql.session import quoted, run_error

if TYPE_CHECKING:
    import duckdb

# What a candidate is: an image that was masked. A failed one has no masks to train on and may have no hash.
_IMAGES = """
create table images as
select image_id, sha256, phash, width::bigint * height as pixels, n_masks
from memory.main.images where status = 'ok' and phash is not null
"""


def read_images(connection: duckdb.DuckDBPyConnection) -> int:
    """The table `images` of what can be compared, made of the dataset that the connection is of. Returns its rows."""
    connection.execute(_IMAGES)
    ((count,),) = connection.execute("select count(*) from images").fetchall()
    return int(count)


@contextmanager
def open_scratch(connection: duckdb.DuckDBPyConnection, settings: DedupSettings) -> Iterator[duckdb.DuckDBPyConnection]:
    """`connection` within the limits of `settings`, new tables going to a temporary file. Closed at the end.

    Raises ConfigError for a setting that DuckDB does not take, StorageError where memory and disk do not suffice,
    DatasetError for a file of the dataset that cannot be read.
    """
    import duckdb

    with (
        tempfile.TemporaryDirectory(prefix="data-engine-dedup-", dir=settings.temp_folder) as folder,
        closing(connection),
    ):
        _limit(connection, settings, folder)
        connection.execute("set preserve_insertion_order = false")
        connection.execute(f"attach {quoted(str(Path(folder) / 'scratch.duckdb'))} as scratch; use scratch")
        try:
            yield connection
        except duckdb.Error as error:
            full = isinstance(error, duckdb.IOException) and folder in str(error)
            if full or isinstance(error, duckdb.OutOfMemoryException):
                raise StorageError(
                    f"deduplication ran out of room ({_first_line(error)}); give it more with --memory, or "
                    "--temp-folder on a larger disk"
                ) from error
            explained = run_error(error)
            if isinstance(explained, DatasetError):
                raise explained from error
            raise


def _limit(connection: duckdb.DuckDBPyConnection, settings: DedupSettings, folder: str) -> None:
    import duckdb

    if settings.memory is not None and not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]i?B", settings.memory):
        raise ConfigError(f"memory {settings.memory!r}: write a size such as 4GB")
    spill = str(Path(folder) / "spill")
    options = {"temp_directory": spill, "memory_limit": settings.memory, "threads": settings.threads}
    try:
        for name, value in options.items():
            if value is not None:
                connection.execute(f"set {name} = {quoted(value) if isinstance(value, str) else value}")
    except duckdb.InvalidInputException as error:
        raise ConfigError(f"DuckDB refuses a setting: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300]
