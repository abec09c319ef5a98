"""Lists of image URIs: text (one a line), CSV, TSV, JSON Lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

import pyarrow as pa

from data_engine.errors import SourceError
from data_engine.images.parquet import open_parquet
from data_engine.images.settings import InputSettings
from data_engine.images.shard import FileEntry, UniqueIds, signed_link, valid_text
from data_engine.images.stream import InputFile
from data_engine.signed_urls import unsigned, without_query
from data_engine.storage import is_local, redact

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson")
_COLUMNS = ("uri", "url", "path", "file", "filename", "file_name", "filepath", "image", "key")
_PREFIXES = ("image_", "img_", "s3_")


def read_manifest(uri: str, settings: InputSettings) -> list[FileEntry]:
    """The entries of a manifest in its order. Relative ones are relative to the manifest.

    Raises SourceError, StorageError, FileNotFoundError.
    """
    ids = UniqueIds()
    address = without_query(uri)
    folder = address[: address.rfind("/") + 1]
    entries = []
    for written, named in _entries(uri, settings):
        relative = "://" not in written and not written.startswith("/")
        where = valid_text(folder + written if relative else written)
        public = unsigned(where)
        if named == written:  # its signature is no part of its name
            named = public[len(folder) :] if relative else public
        entries.append(FileEntry(ids.claim(_without_secrets(valid_text(named))), public, link=signed_link(where)))
    return entries


def _without_secrets(name: str) -> str:
    """A name as it is, a link without what may be a secret in it. Folders such as user_key=7 belong to the name."""
    if "://" in name:
        return redact(name)
    path, mark, query = name.partition("?")
    return path + redact(mark + query)


def refused(entry: FileEntry, manifest: str, settings: InputSettings) -> bool:
    """Whether a manifest read over the network names a file of this machine, and may not."""
    return is_local(entry.uri) and not is_local(manifest) and not settings.allow_local_in_remote_manifests


def column_of_uris(names: list[str], uri: str, settings: InputSettings) -> str | None:
    """The column that names the images; None if none looks like it. Raises SourceError if the setting names none."""
    for chosen in (settings.uri_column, settings.id_column):
        if chosen is not None and chosen not in names:
            raise SourceError(f"{redact(uri)}: no column {chosen!r}; it has {', '.join(names)}")
    if settings.uri_column is not None:
        return settings.uri_column
    plain = {name.lower(): name for name in reversed(names)}
    for wanted in (*_COLUMNS, *(prefix + column for column in _COLUMNS for prefix in _PREFIXES)):
        if wanted in plain:
            return plain[wanted]
    return None


def _entries(uri: str, settings: InputSettings) -> Iterator[tuple[str, str]]:
    """(entry as written, what it is called)."""
    lower = without_query(uri).lower()
    if lower.endswith(".parquet"):
        yield from _from_parquet(uri, settings)
        return
    if lower.endswith((".csv", ".tsv")):
        yield from _from_table(_text(uri, settings), uri, "\t" if lower.endswith(".tsv") else ",", settings)
    elif lower.endswith((".jsonl", ".ndjson")):
        yield from _from_json_lines(_text(uri, settings), uri, settings)
    else:
        for line in _text(uri, settings).split("\n"):
            line = line.removesuffix("\r")
            if line.strip():
                yield line, line


def _text(uri: str, settings: InputSettings) -> str:
    with InputFile(uri, settings) as file:
        pieces = []
        while piece := file.read(8 << 20):
            pieces.append(piece)
    data = b"".join(pieces)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{redact(uri)}: line {line:,} is not UTF-8 text") from None
    if "\0" in text:
        raise SourceError(f"{redact(uri)}: line {text.count(chr(10), 0, text.index(chr(0))) + 1:,} is not text")
    return text


def _from_table(text: str, uri: str, delimiter: str, settings: InputSettings) -> Iterator[tuple[str, str]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 1
    try:
        header = next(rows, None)
        if header is None:
            return
        column = column_of_uris(header, uri, settings)
        if column is None:
            if len(header) != 1 or not (settings.is_image(header[0]) or "://" in header[0]):
                raise SourceError(_no_column(uri, header))
            yield header[0], header[0]  # one column without a header
            where, named = 0, 0
        else:
            where = header.index(column)
            named = header.index(settings.id_column) if settings.id_column is not None else where
        for number, row in enumerate(rows, 2):
            if not row:
                continue
            if len(row) <= max(where, named):
                raise SourceError(f"{redact(uri)}: row {number:,} has {len(row)} of {len(header)} columns")
            if row[where].strip():
                yield row[where], _named(row[named], row[where])
    except csv.Error as error:
        raise SourceError(f"{redact(uri)}: near row {number:,}: {error}") from None


def _from_json_lines(text: str, uri: str, settings: InputSettings) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise SourceError(f"{redact(uri)}: line {number:,} is not JSON") from None
        if isinstance(row, str):
            yield row, row
            continue
        if not isinstance(row, dict):
            raise SourceError(f"{redact(uri)}: line {number:,} is neither an object nor a string")
        column = column_of_uris(list(row), uri, settings)
        if column is None or not isinstance(row[column], str):
            raise SourceError(f"line {number:,} of {_no_column(uri, list(row))}")
        yield row[column], _named(row[settings.id_column or column], row[column])


def _from_parquet(uri: str, settings: InputSettings) -> Iterator[tuple[str, str]]:
    with open_parquet(uri, settings) as (parquet, _):
        schema = parquet.schema_arrow
        column = column_of_uris(schema.names, uri, settings)
        if column is None or not (
            pa.types.is_string(schema.field(column).type) or pa.types.is_large_string(schema.field(column).type)
        ):
            raise SourceError(_no_column(uri, schema.names))
        columns = [column] if settings.id_column is None else [column, settings.id_column]
        try:
            for batch in parquet.iter_batches(columns=list(dict.fromkeys(columns)), use_threads=False):
                for row in batch.to_pylist():
                    if row[column]:
                        yield row[column], _named(row[columns[-1]], row[column])
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{redact(uri)}: damaged ({' '.join(str(error).split())[:200]})") from None


def _named(value: object, written: str) -> str:
    """What an image is called: the value of the column of ids; without one, the entry as written."""
    return written if value is None or value == "" else str(value)


def _no_column(uri: str, names: list[str]) -> str:
    return f"{redact(uri)}: which column names the images? It has {', '.join(names)}; choose with input.uri_column"
