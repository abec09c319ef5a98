"""Queries over a dataset's views, by DuckDB, locked: one SELECT at a time, no file outside the dataset, no writing."""

from __future__ import annotations

import re
import tempfile
from contextlib import ExitStack, suppress
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

import pyarrow as pa

from data_engine.dataset.duckdb_errors import of_store, said_by
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError, UsageError
from data_engine.sql.background import BackgroundAnswer
from data_engine.storage import is_local, local_path

if TYPE_CHECKING:
    import duckdb

_FIRST = ("images", "masks")  # then the others, by name
_BATCH = 10_000  # rows


class SqlSession:
    """The views of `MaskDataset.duckdb()`, over exactly the committed files of a dataset. A context manager.

    Whoever writes the query can read the dataset and compute; DuckDB refuses files elsewhere, extensions, other
    databases and changes of these settings, and this class refuses everything but one SELECT. Large sorts and groups
    go to a temporary folder that is removed at the end.
    """

    def __init__(self, dataset: MaskDataset) -> None:
        self._stack = ExitStack()
        self._connection = connect(dataset)
        self._stack.callback(self._connection.close)
        spill = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="data-engine-sql-"))
        root = str(local_path(dataset.root)) if is_local(dataset.root) else dataset.root
        for setting, value in (
            ("temp_directory", quoted(spill)),
            ("python_enable_replacements", "false"),  # names are views, never variables of this process
            ("allowed_directories", f"[{quoted(root.rstrip('/') + '/')}]"),
            ("enable_external_access", "false"),
            ("lock_configuration", "true"),  # last: from here on, none of this can be changed
        ):
            self._connection.execute(f"set {setting} = {value}")

    def __enter__(self) -> SqlSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()

    @cached_property
    def views(self) -> dict[str, dict[str, str]]:
        """View -> column -> DuckDB's type."""
        rows = self._connection.sql("select table_name from information_schema.tables").fetchall()
        names = sorted((name for (name,) in rows), key=lambda name: (name not in _FIRST, name))
        found: dict[str, dict[str, str]] = {}
        for name in names:
            described = self._connection.sql(f"from {name}")
            found[name] = dict(zip(described.columns, map(str, described.types), strict=True))
        return found

    def query(self, query: str) -> pa.RecordBatchReader:
        """The answer, computed as it is read.

        Raises UsageError for a query that is wrong or not allowed, DatasetError for a file that cannot be read.
        """
        import duckdb

        try:
            statement = self._only_select(query)
            # Only at the top level can a WITH clause write; within parentheses DuckDB refuses it. This runs nothing.
            self._connection.sql(f"from (\n{statement}\n)")
            relation = self._connection.sql(statement)
            answer = BackgroundAnswer(lambda: relation.to_arrow_reader(_BATCH), self._connection.interrupt)
        except duckdb.Error as error:
            if isinstance(error, duckdb.IOException) or of_store(error):
                raise run_error(error) from None
            raise UsageError(self._explained(error, query)) from None
        self._stack.callback(answer.close)
        return answer.reader()

    def _only_select(self, query: str) -> str:
        from duckdb import StatementType

        statements = self._connection.extract_statements(query)
        pivots = re.search(r"\bpivot\b", query, re.IGNORECASE)  # which makes a type first, to hold the values
        hint = "; name the values of a pivot: pivot … on column in (…)" if pivots else ""
        if len(statements) != 1:
            raise UsageError(f"one query at a time, this is {len(statements)}{hint}")
        if statements[0].type != StatementType.SELECT:
            raise UsageError(f"only queries that read are allowed (select, from, with, describe, summarize){hint}")
        return query.strip().rstrip(";")

    def _explained(self, error: duckdb.Error, query: str) -> str:
        """DuckDB's first line, and what there is instead of what was asked for."""
        import duckdb

        said = re.sub(r"^[A-Z]\w+( \w+)* Error: ", "", str(error).strip().splitlines()[0])
        text = f"the query cannot be answered: {said.rstrip('!')}"
        if isinstance(error, duckdb.PermissionException):
            return f"{text}; a query reads the views {', '.join(self.views)} and no other files"
        if isinstance(error, duckdb.CatalogException) and said.startswith("Table"):
            return f"{text}; the views are {', '.join(self.views)}"
        if isinstance(error, duckdb.BinderException) and "column" in said:
            return f"{text}; {self._columns_shown(query)}"
        return text

    def _columns_shown(self, query: str) -> str:
        """The columns of the views that the query names."""
        named = [view for view in self.views if re.search(rf"\b{view}\b", query, re.IGNORECASE)]
        return "; ".join(f"columns of {view}: {', '.join(self.views[view])}" for view in named)


def connect(dataset: MaskDataset) -> duckdb.DuckDBPyConnection:
    """`dataset.duckdb()`, quiet. Raises DatasetError where DuckDB is missing, or a file of the dataset."""
    try:
        import duckdb
    except ImportError:
        return dataset.duckdb()  # which says what to install
    try:
        connection = dataset.duckdb()
        with suppress(duckdb.InvalidInputException):  # in a notebook without widgets, which has none
            connection.execute("set enable_progress_bar = false")  # it would go to stdout
        return connection
    except duckdb.Error as error:
        raise run_error(error) from None


def run_error(error: Exception) -> DatasetError | UsageError:
    """What went wrong while an answer was computed, as an error of ours."""
    import duckdb

    said = said_by(error)
    of_file = ".parquet'" in said or '.parquet"' in said  # such as "No magic bytes found at end of file '…'"
    if isinstance(error, (duckdb.IOException, OSError)) or "IO Error" in said or of_file or of_store(error):
        return DatasetError(f"a file of the dataset cannot be read ({said}); data-engine audit tells which")
    return UsageError(f"the query stopped: {said}")


def quoted(text: str) -> str:
    """A string of DuckDB's SQL."""
    return "'" + text.replace("'", "''") + "'"
