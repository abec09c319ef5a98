"""Whether there is a file or a folder at a path or URL."""

from __future__ import annotations

from data_engine.errors import StorageError
from data_engine.images.retry import with_retries
from data_engine.storage import filesystem, scheme_of


def over_http(uri: str) -> bool:
    return scheme_of(uri) in ("http", "https")


def is_there(uri: str) -> bool:
    """Whether there is a file or folder. Raises StorageError where a store does not say."""
    return _kind(uri) is not None


def is_folder(uri: str) -> bool:
    """As `is_there`; a web server has no folders."""
    return not over_http(uri) and _kind(uri) == "directory"


def _kind(uri: str) -> str | None:
    fs, path = filesystem(uri)

    def look() -> str | None:
        try:
            return str(fs.info(path)["type"])
        except NotADirectoryError:  # what is above it is a file
            return None

    try:
        return with_retries(uri, look)
    except FileNotFoundError:
        return None
    except StorageError:
        if over_http(uri):  # a server may refuse what it does not have
            return None
        raise
