"""The photographs of a folder, found by name: on this machine, in a store, or below a web address."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import quote

import numpy as np

from data_engine.errors import UsageError
from data_engine.evaluation.places import is_folder, over_http
from data_engine.images.decode import decode
from data_engine.images.fetch import fetch
from data_engine.images.listing import find_files
from data_engine.images.settings import InputSettings
from data_engine.images.shard import FileEntry
from data_engine.storage import is_local, join, local_path, redact

_SETTINGS = InputSettings()


class Photographs:
    """A folder in a store is listed once. A web server lists nothing: there every name is taken to be there."""

    def __init__(self, folder: str, *, recursive: bool) -> None:
        """recursive: names may lie in folders below. Raises SourceError for what is not there, StorageError."""
        self.folder = str(local_path(folder)) if is_local(folder) else folder
        self._listed: dict[str, FileEntry] | None = None
        if over_http(folder):
            _refuse_a_query(folder)
        elif not is_local(folder):
            self._listed = {file.image_id: file for file in files_in(folder, recursive=recursive)}

    def find(self, name: str) -> FileEntry | None:
        """The photograph of that name below the folder."""
        if self._listed is not None:
            return self._listed.get(str(PurePosixPath(name)))
        if is_local(self.folder):
            path = local_path(self.folder) / name
            return FileEntry(name, str(path)) if path.is_file() else None
        return FileEntry(name, join(self.folder, quote(name)))


def files_in(folder: str, *, recursive: bool = False) -> list[FileEntry]:
    """The visible files of a folder, by name. Raises SourceError and StorageError."""
    found = find_files(folder.rstrip("/") + "/", InputSettings(recursive=recursive)).files
    return [FileEntry(file.name, file.uri, file.size) for file in found]


def images_of(folder: str) -> str:
    """images/ in a folder, or else the folder itself."""
    inside = join(folder, "images")
    return inside if is_folder(inside) else folder


def pixels_of(picture: FileEntry) -> np.ndarray:
    """HxWx3 uint8, as displayed. Raises ImageError, and StorageError where a store fails."""
    return decode(fetch(picture, _SETTINGS), _SETTINGS)


def _refuse_a_query(folder: str) -> None:
    if "?" in folder:
        raise UsageError(
            f"{redact(folder)}: a signed link opens one file, not the photographs below it; "
            "use the store's own address (s3://…) with credentials, or copy them"
        )
