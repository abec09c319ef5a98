"""Parquet files that hold images: a binary column, or Hugging Face's struct<bytes, path>."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.errors import DataEngineError, SourceError
from data_engine.images.settings import InputSettings
from data_engine.images.shard import (
    EncodedImage,
    ImageError,
    Shard,
    UniqueIds,
    refuse_if_changed,
    shard_id,
    signed_link,
    valid_text,
)
from data_engine.images.stream import InputFile
from data_engine.signed_urls import unsigned
from data_engine.storage import redact

_BATCH = 16  # rows decoded at once
_NAMES = ("image", "jpg", "jpeg", "png", "bytes", "data", "img", "content")


@contextmanager
def open_parquet(uri: str, settings: InputSettings) -> Iterator[tuple[pq.ParquetFile, InputFile]]:
    """A Parquet file with its page checksums verified. Raises SourceError, StorageError, FileNotFoundError."""
    with InputFile(uri, settings) as file:
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True, buffer_size=1 << 20)
        except (DataEngineError, FileNotFoundError):
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(f"{redact(uri)}: not a whole Parquet file ({_brief(error)})") from None
        yield parquet, file


def image_column(schema: pa.Schema, uri: str, settings: InputSettings) -> str | None:
    """The column that holds images, None if there is none. Raises SourceError if it is named wrongly or ambiguous."""
    if settings.image_column is not None:
        if settings.image_column not in schema.names:
            raise SourceError(f"{redact(uri)}: no column {settings.image_column!r}; it has {', '.join(schema.names)}")
        found = schema.field(settings.image_column).type
        if not _holds_bytes(found):
            raise SourceError(
                f"{redact(uri)}: column {settings.image_column!r} is {found}; images are binary or struct<bytes, path>"
            )
        return settings.image_column
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    for name in _NAMES:
        for candidate in candidates:
            if candidate.lower() == name:
                return str(candidate)
    if len(candidates) > 1:
        raise SourceError(
            f"{redact(uri)}: images may be in any of {', '.join(candidates)}; choose with input.image_column"
        )
    return str(candidates[0]) if candidates else None


def parquet_shards(
    uri: str, prefix: str, settings: InputSettings, id_owner: dict[str, str] | None = None
) -> tuple[Shard, ...]:
    """One shard for every run of row groups with `images_per_shard` rows or a little more.

    `id_owner` collects, over all files, which shard an id is in. Raises SourceError when two shards have the same one.
    """
    with open_parquet(uri, settings) as (parquet, file):
        if image_column(parquet.schema_arrow, uri, settings) is None:
            raise SourceError(f"{redact(uri)}: no column holds images; it has {', '.join(parquet.schema_arrow.names)}")
        _check_id_column(parquet.schema_arrow, uri, settings)
        metadata = parquet.metadata
        shards: list[Shard] = []
        groups: list[int] = []
        for group in range(metadata.num_row_groups):
            groups.append(group)
            rows = sum(metadata.row_group(g).num_rows for g in groups)
            if rows and (rows >= settings.images_per_shard or group == metadata.num_row_groups - 1):
                shards.append(
                    Shard(
                        id=shard_id("parquet", unsigned(uri), groups),
                        kind="parquet",
                        uri=unsigned(uri),
                        prefix=prefix,
                        size=sum(_compressed_bytes(metadata.row_group(g)) for g in groups),
                        etag=file.version,
                        images=rows,
                        row_groups=tuple(groups),
                        link=signed_link(uri),
                    )
                )
                groups = []
        if id_owner is not None and settings.id_column is not None:
            for shard in shards:
                with _readable(uri):
                    ids = parquet.read_row_groups(list(shard.row_groups or ()), columns=[settings.id_column])
                for value in ids.column(0).to_pylist():
                    if value is None or value == "":  # named by file and row
                        continue
                    if id_owner.setdefault(str(value), shard.id) != shard.id:
                        raise SourceError(
                            f"{redact(uri)}: {value!r} is in column {settings.id_column!r} of more than one "
                            "shard; leave input.id_column out to name images by file and row"
                        )
    return tuple(shards)


def read_parquet(shard: Shard, settings: InputSettings, start: int = 0) -> Iterator[EncodedImage]:
    """The images of a shard from number `start` on. Rows that a damaged page takes with it are failed images.

    Raises ShardDamaged ("changed"), SourceError, StorageError, FileNotFoundError.
    """
    with open_parquet(shard.location, settings) as (parquet, file):
        refuse_if_changed(shard, file.size, file.version)
        column = image_column(parquet.schema_arrow, shard.uri, settings)
        if column is None:
            raise SourceError(f"{redact(shard.uri)}: no column holds images any more")
        ids = UniqueIds()
        index = 0
        for group in shard.row_groups or ():
            metadata = parquet.metadata
            first_row = sum(metadata.row_group(g).num_rows for g in range(group))
            count = metadata.row_group(group).num_rows
            if settings.id_column is None and index + count <= start:
                index += count
                continue
            for row, data, error, name in _rows(parquet, group, count, column, settings):
                in_file = f"{shard.prefix}/{first_row + row}"
                image_id = ids.claim(in_file if name is None else name)
                if index >= start:
                    yield EncodedImage(index, image_id, f"{redact(shard.uri)}#{first_row + row}", data, error)
                index += 1


def _rows(
    parquet: pq.ParquetFile, group: int, count: int, column: str, settings: InputSettings
) -> Iterator[tuple[int, bytes | None, ImageError | None, str | None]]:
    """(row in the group, bytes, error, id) of every row, whatever happens."""
    columns = [column] if settings.id_column is None else [column, settings.id_column]
    row = 0
    try:
        for batch in parquet.iter_batches(_BATCH, row_groups=[group], columns=columns, use_threads=False):
            values = batch.column(batch.schema.get_field_index(column))
            if pa.types.is_struct(values.type):
                values = _bytes_of(values)
            names = (
                None if settings.id_column is None else batch.column(batch.schema.get_field_index(settings.id_column))
            )
            for position in range(len(batch)):
                data, error = _image(values[position], settings)
                name = names[position].as_py() if names is not None else None
                yield row, data, error, None if name is None or name == "" else valid_text(str(name))
                row += 1
        reason = f"its row group has {row:,} rows, {count:,} were announced"
    except (DataEngineError, FileNotFoundError, MemoryError):
        raise
    except (pa.ArrowException, OSError, ValueError) as damage:
        reason = f"a page of its row group is damaged: {_brief(damage)}"
    for lost in range(row, count):
        yield lost, None, ImageError("corrupt", reason), None


def _image(value: pa.Scalar, settings: InputSettings) -> tuple[bytes | None, ImageError | None]:
    if not value.is_valid:
        return None, ImageError("null", "there is no image in this row")
    size = value.as_buffer().size
    if size == 0:
        return None, ImageError("empty", "0 bytes")
    if size > settings.max_image_bytes:
        limit = f"input.max_image_bytes = {settings.max_image_bytes:,}"
        return None, ImageError("too_large", f"{size:,} bytes, above {limit}")
    return value.as_py(), None


def _bytes_of(structs: pa.StructArray) -> pa.Array:
    """The bytes of Hugging Face images, null where the whole is null."""
    return structs.flatten()[structs.type.get_field_index("bytes")]


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _holds_bytes(kind.field(position).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _check_id_column(schema: pa.Schema, uri: str, settings: InputSettings) -> None:
    if settings.id_column is None:
        return
    if settings.id_column not in schema.names:
        raise SourceError(f"{redact(uri)}: no column {settings.id_column!r}; it has {', '.join(schema.names)}")
    kind = schema.field(settings.id_column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise SourceError(f"{redact(uri)}: column {settings.id_column!r} is {kind}; ids are strings or integers")


def _compressed_bytes(group: Any) -> int:
    return sum(group.column(i).total_compressed_size for i in range(group.num_columns))


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    try:
        yield
    except (DataEngineError, FileNotFoundError, MemoryError):
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{redact(uri)}: damaged ({_brief(error)})") from None


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
