"""From an input's URI to its shards, and from a shard to its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from data_engine.errors import SourceError, StorageError
from data_engine.images.fetch import version
from data_engine.images.files import read_files
from data_engine.images.hosts import input_filesystem
from data_engine.images.listing import LINKS, Found, FoundFile, find_files
from data_engine.images.manifest import SUFFIXES as MANIFESTS
from data_engine.images.manifest import column_of_uris, read_manifest
from data_engine.images.parquet import image_column, open_parquet, parquet_shards, read_parquet
from data_engine.images.retry import with_retries
from data_engine.images.settings import InputSettings, Kind
from data_engine.images.shard import (
    EncodedImage,
    FileEntry,
    Shard,
    ShardDamaged,
    UniqueIds,
    refuse_if_changed,
    shard_id,
    signed_link,
)
from data_engine.images.web_reach import WebReach
from data_engine.images.webdataset import read_tar
from data_engine.signed_urls import unsigned
from data_engine.storage import is_local, local_path, redact, scheme_of

_TARS = (".tar", ".tar.gz", ".tgz")
_OTHER_TARS = (".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".zip", ".7z", ".rar")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What an input consists of."""

    kind: Kind
    shards: tuple[Shard, ...]
    skipped: Mapping[str, int]
    """How many files were passed over, by reason."""
    images: int | None
    """How many images there are, None where tars must be read to tell."""
    warnings: tuple[str, ...] = ()


def list_shards(uri: str, settings: InputSettings) -> Listing:
    """Lists a file, folder, glob, brace range or manifest, in an order that depends on names alone.

    Raises SourceError (nothing there, no images, unclear), UsageError (a scheme that is not allowed) and StorageError.
    """
    found = find_files(uri, settings)
    warnings: list[str] = []
    if links := found.skipped[LINKS]:
        warnings.append(
            f"{redact(uri)}: links to folders are not followed ({links:,} of them); name the folders themselves"
        )
    kind = settings.kind if settings.kind != "auto" else _kind_of(uri, found, settings, warnings)
    if kind == "files":
        images = _take(
            found, lambda file: settings.is_image(file.name), f"not an image ({', '.join(settings.extensions)})"
        )
        ids = UniqueIds()
        entries = [_file_entry(file, ids.claim(file.name)) for file in images]
        root = str(local_path(uri)) if is_local(uri) else unsigned(uri)  # a plan means the same from everywhere
        shards = _file_shards(root, entries, settings)
    elif kind == "manifest":
        shards = _manifest_shards(found, settings)
    elif kind == "tar":
        tars = _take(found, lambda file: _ends(file, _TARS) or len(found.files) == 1, "not a tar")
        ids = UniqueIds()
        shards = [_tar_shard(file, ids.claim(file.name)) for file in tars]
    else:
        files = _take(found, lambda file: _ends(file, (".parquet",)) or len(found.files) == 1, "not Parquet")
        shards = _parquet_shards(files, settings)
    if not shards:
        passed = "; ".join(f"{count:,} files are {reason}" for reason, count in found.skipped.items())
        raise SourceError(f"{redact(uri)}: no images found" + (f" ({passed})" if passed else ""))
    _refuse_twice_signed(shards)
    counts = [shard.images for shard in shards]
    return Listing(
        kind=kind,
        shards=tuple(shards),
        skipped=dict(sorted(found.skipped.items())),
        images=None if None in counts else sum(count or 0 for count in counts),
        warnings=tuple(warnings),
    )


def read_shard(
    shard: Shard,
    settings: InputSettings,
    *,
    start: int = 0,
    offset: int | None = None,
    seen_ids: Collection[str] = (),
    web: WebReach | None = None,
) -> Generator[EncodedImage, None, None]:
    """The images of a shard from number `start` on, one EncodedImage each, in the same order every time.

    `offset` is the `next_offset` of image `start - 1`, and spares reading what lies before it; `seen_ids` are then the
    ids of the images before it, so that repeated names are numbered as in an undisturbed run. `web` tells a network
    that is away from a web server that is: where it is given, the first is a StorageError, and no image's failure.
    Raises ShardDamaged after the last whole image, SourceError, StorageError, FileNotFoundError.
    """
    if shard.kind == "files":
        yield from read_files(shard, settings, start, web)
        return
    try:
        if shard.kind == "parquet":
            yield from read_parquet(shard, settings, start)
        else:
            yield from read_tar(shard, settings, start, offset, seen_ids)
    except (ShardDamaged, StorageError):
        check_unchanged(shard, settings)  # the better explanation, if it is one
        raise
    check_unchanged(shard, settings)


def check_unchanged(shard: Shard, settings: InputSettings | None = None) -> None:
    """Raises ShardDamaged ("changed") if a tar or Parquet file is not the one that was listed, or is gone.

    Files of their own are compared one by one when they are read: a changed one is a failed image.
    Without `settings` nothing is asked of web servers; `read_shard` compares those itself.
    """
    if shard.kind == "files" or (settings is None and scheme_of(shard.uri) in ("http", "https")):
        return
    location = shard.location
    fs, path = input_filesystem(location, settings or InputSettings())
    try:
        info = with_retries(location, lambda: fs.info(path))
    except FileNotFoundError:
        raise ShardDamaged(f"{redact(shard.uri)} is gone since it was listed", "changed") from None
    refuse_if_changed(shard, info.get("size"), version(info))


def _kind_of(uri: str, found: Found, settings: InputSettings, warnings: list[str]) -> Kind:
    """What the files are, by their names. Images win over archives beside them."""
    files = found.files
    if len(files) == 1 and _ends(files[0], MANIFESTS):
        return "manifest"
    archives = {".parquet": 0, "tar": 0, "other": 0}
    images = 0
    for file in files:
        if settings.is_image(file.name):
            images += 1
        elif _ends(file, _TARS):
            archives["tar"] += 1
        elif _ends(file, (".parquet",)):
            archives[".parquet"] += 1
        elif _ends(file, _OTHER_TARS):
            archives["other"] += 1
    if images:
        for kind, count in (("tar", archives["tar"]), ("parquet", archives[".parquet"])):
            if count:
                warnings.append(
                    f"{redact(uri)}: {count:,} {kind} files lie beside {images:,} images and are not read; "
                    f"input.kind={kind} reads them instead"
                )
        return "files"
    if archives["tar"] and archives[".parquet"]:
        raise SourceError(f"{redact(uri)}: tars and Parquet files; choose with input.kind=tar or input.kind=parquet")
    if archives["tar"]:
        return "tar"
    if archives[".parquet"]:
        first = next(file for file in files if _ends(file, (".parquet",)))
        return _parquet_kind(first, settings)
    if archives["other"]:
        raise SourceError(f"{redact(uri)}: of archives only .tar, .tar.gz and .tgz are read")
    if len(files) == 1 and not found.skipped:
        raise SourceError(f"{redact(files[0].uri)}: cannot tell from its name what it is; choose with input.kind")
    return "files"


def _parquet_kind(file: FoundFile, settings: InputSettings) -> Kind:
    if settings.image_column is not None:
        return "parquet"
    if settings.uri_column is not None:
        return "manifest"
    with open_parquet(file.uri, settings) as (parquet, _):
        schema = parquet.schema_arrow
    if image_column(schema, file.uri, settings) is not None:
        return "parquet"
    if column_of_uris(schema.names, file.uri, settings) is not None:
        return "manifest"
    raise SourceError(
        f"{redact(file.uri)}: no column holds or names images; it has {', '.join(schema.names)}. "
        "Choose with input.image_column or input.uri_column"
    )


def _take(found: Found, wanted: Callable[[FoundFile], bool], otherwise: str) -> list[FoundFile]:
    """The files that are wanted; the others are counted."""
    taken = [file for file in found.files if wanted(file)]
    if len(taken) < len(found.files):
        found.skipped[otherwise] += len(found.files) - len(taken)
    return taken


def _ends(file: FoundFile, suffixes: Iterable[str]) -> bool:
    return file.name.lower().endswith(tuple(suffixes))


def _file_shards(uri: str, entries: list[FileEntry], settings: InputSettings) -> list[Shard]:
    shards = []
    for first in range(0, len(entries), settings.images_per_shard):
        files = tuple(entries[first : first + settings.images_per_shard])
        sizes = [file.size for file in files]
        versions = [file.etag for file in files]
        shards.append(
            Shard(
                id=shard_id("files", uri, [(file.image_id, file.uri) for file in files]),
                kind="files",
                uri=uri,
                size=None if None in sizes else sum(size or 0 for size in sizes),
                etag=None if None in versions else shard_id("versions", uri, versions),
                images=len(files),
                files=files,
            )
        )
    return shards


def _manifest_shards(found: Found, settings: InputSettings) -> list[Shard]:
    manifests = _take(found, lambda file: _ends(file, (*MANIFESTS, ".parquet")) or len(found.files) == 1, "no manifest")
    shards: list[Shard] = []
    seen: Counter[str] = Counter()
    for file in manifests:
        entries = read_manifest(file.uri, settings)
        if len(manifests) > 1:  # in one they are unique, and there may be millions
            seen.update(entry.image_id for entry in entries)
        shards += _file_shards(unsigned(file.uri), entries, settings)
    repeated = next((name for name, count in seen.items() if count > 1), None)
    if repeated is not None:
        raise SourceError(f"{repeated!r} is in more than one of the manifests; join them into one")
    return shards


def _tar_shard(file: FoundFile, prefix: str) -> Shard:
    uri = unsigned(file.uri)
    return Shard(
        id=shard_id("tar", uri),
        kind="tar",
        uri=uri,
        prefix=prefix,
        size=file.size,
        etag=file.etag,
        link=signed_link(file.uri),
    )


def _file_entry(file: FoundFile, image_id: str) -> FileEntry:
    return FileEntry(image_id, unsigned(file.uri), file.size, file.etag, signed_link(file.uri))


def _refuse_twice_signed(shards: list[Shard]) -> None:
    """Two links that differ in their signatures alone lead to one file: its images would be there twice."""
    repeated = [id for id, count in Counter(shard.id for shard in shards).items() if count > 1]
    if repeated:
        uri = next(shard.uri for shard in shards if shard.id == repeated[0])
        raise SourceError(f"{redact(uri)}: it is in the input twice, with two signatures; name it once")


def _parquet_shards(files: list[FoundFile], settings: InputSettings) -> list[Shard]:
    id_owner: dict[str, str] = {}

    def shards_of(file: FoundFile) -> Iterable[Shard]:
        return parquet_shards(file.uri, file.name, settings, id_owner)

    if settings.id_column is not None:  # ids are compared in order, so that the error names the same file every time
        return [shard for file in files for shard in shards_of(file)]
    with ThreadPoolExecutor(settings.fetch_threads, thread_name_prefix="list") as pool:
        listed: Iterator[Iterable[Shard]] = pool.map(shards_of, files)
        return [shard for shards in listed for shard in shards]
