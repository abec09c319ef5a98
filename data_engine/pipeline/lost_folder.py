"""A folder of images can go away as a whole, as a network mount does. That is no fault of the images in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from data_engine.errors import UsageError
from data_engine.images.patterns import has_pattern, root_of
from data_engine.images.shard import EncodedImage, Shard, existing_path
from data_engine.retry import passes
from data_engine.storage import is_local, local_path

_EMPTY = "it is empty"


def lost_folder(shard: Shard, image: EncodedImage) -> str | None:
    """Why an image that cannot be read is no failed row: the folder it lay in is gone or empty. None where it is one.

    Asked of local files: listed in a folder or by a glob, or named by a manifest.
    """
    if image.error is None or image.error.type != "unreadable" or shard.kind != "files":
        return None
    named = _path(shard.files[image.index].uri)
    if named is None:
        return None
    file = existing_path(named)
    root = _listed_root(shard, file)
    if root is not None and (error := _trouble(root)) is not None:
        return _message(root, error)
    lost = _lost(file, lambda folder: _below(shard, folder), listed=root is not None)
    if lost is None and image.error.message == "not found" and file.exists():  # it was fetched ahead, in a bad moment
        return f"{file}: it was not there a moment ago, and is now"
    return lost


def lost_archive(shard: Shard) -> str | None:
    """Why a tar or Parquet file that is gone has not been deleted: its folder is gone or empty, too. None otherwise."""
    if shard.kind == "files" or not is_local(shard.uri):
        return None
    file = existing_path(local_path(shard.uri))
    return None if file.exists() else _lost(file, lambda folder: (1, 1), listed=False)


def _lost(file: Path, below: Callable[[Path], tuple[int, int]], listed: bool) -> str | None:
    """What is wrong with the folders above a file that cannot be read, if that is not the file's own fault.

    below: of a folder, how many of the shard's local files lay in it and below, and how many there are.
    listed: they were found by looking into folders.
    """
    gone: Path | None = None
    for folder in file.parents:
        error = _trouble(folder)
        if error is None:
            break
        if isinstance(error, str):
            # An image may be deleted and leave its folder empty. Where several lay, or all, it is more likely a mount.
            lay, files = below(folder)
            return _message(folder, error) if lay >= min(2, files) else None
        if passes(error):  # what a mount says whose server is away
            return _message(folder, error)
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):  # no rights, or no name that can be
            break
        gone = folder
    # A folder may be deleted. One that held all that a manifest names in this shard is more likely a mount.
    if gone is not None and not listed and len(set(below(gone))) == 1:
        return _message(gone, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    return None


def _trouble(folder: Path) -> OSError | str | None:
    """Why nothing can be found in a folder."""
    try:
        with os.scandir(folder) as entries:
            return _EMPTY if next(entries, None) is None else None
    except OSError as error:
        return error
    except ValueError:  # a NUL in it
        return None


def _listed_root(shard: Shard, file: Path) -> Path | None:
    """What everything that a folder or glob stands for lies below. None for a manifest: what it names lies anywhere."""
    if not is_local(shard.uri):
        return None
    listed = local_path(shard.uri)
    if listed in file.parents:
        return listed
    root = Path(root_of(str(listed)))
    return root if root != listed.parent or has_pattern(listed.name) or "{" in listed.name else None


def _below(shard: Shard, folder: Path) -> tuple[int, int]:
    """How many local files of the shard lie in a folder and below it, and how many there are."""
    prefix = f"{str(folder).rstrip('/')}/"
    paths = [str(path) for file in shard.files if (path := _path(file.uri)) is not None]
    return sum(path.startswith(prefix) for path in paths), len(paths)


def _path(uri: str) -> Path | None:
    """Of a local file; None for another, and for one in the home of nobody."""
    try:
        return local_path(uri) if is_local(uri) else None
    except UsageError:
        return None


def _message(folder: Path, trouble: OSError | str) -> str:
    reason = trouble if isinstance(trouble, str) else trouble.strerror or type(trouble).__name__
    return (
        f"{folder}: what lay there is not there now ({reason}); mount it, and run the same command again "
        "(if its images are gone for good, put any file there first)"
    )
