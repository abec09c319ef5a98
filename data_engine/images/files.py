"""Images that are files of their own: several fetched at once, handed on in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from data_engine.errors import DataEngineError, StorageError
from data_engine.images.fetch import fetch
from data_engine.images.manifest import refused
from data_engine.images.settings import InputSettings
from data_engine.images.shard import AccessDenied, EncodedImage, FileEntry, ImageError, Shard, Unreachable
from data_engine.images.web_reach import WebReach
from data_engine.storage import redact, scheme_of

_DENIED_IN_A_ROW = 20
_AHEAD_BYTES = 256 << 20  # fetched but not yet asked for, where sizes are known


def read_files(
    shard: Shard, settings: InputSettings, start: int = 0, web: WebReach | None = None
) -> Iterator[EncodedImage]:
    """The images of a shard of files from number `start` on. Raises StorageError when the store itself fails, or the
    network, as far as `web` can tell."""
    waiting: deque[tuple[int, FileEntry, Future[bytes | ImageError]]] = deque()
    ahead = 0
    rights = _Rights(settings)
    pool = ThreadPoolExecutor(settings.fetch_threads, thread_name_prefix="fetch")
    try:
        following = start
        while waiting or following < len(shard.files):
            while following < len(shard.files) and len(waiting) < settings.fetch_threads:
                size = shard.files[following].size or 0
                if waiting and ahead + size > _AHEAD_BYTES:
                    break
                entry = shard.files[following]
                waiting.append((following, entry, pool.submit(_fetch, entry, shard.uri, settings, web)))
                ahead += size
                following += 1
            index, entry, future = waiting.popleft()
            ahead -= entry.size or 0
            result = future.result()
            uri = redact(entry.uri)
            if isinstance(result, ImageError):
                yield from rights.failed(entry, EncodedImage(index, entry.image_id, uri, error=result))
            else:
                yield from rights.read(entry, EncodedImage(index, entry.image_id, uri, result))
        yield from rights.held
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Rights:
    """Tells an image that may not be read from rights that were lost: the first is a failed row, the second are all.

    Images that are denied before any could be read are held back until one can be.
    """

    def __init__(self, settings: InputSettings) -> None:
        self._settings = settings
        self._readable: FileEntry | None = None
        self.held: list[EncodedImage] = []

    def read(self, entry: FileEntry, image: EncodedImage) -> Iterator[EncodedImage]:
        self._readable = entry
        yield from self.held
        self.held.clear()
        yield image

    def failed(self, entry: FileEntry, image: EncodedImage) -> Iterator[EncodedImage]:
        """Raises StorageError when what could be read before cannot be any more, or when nothing ever could."""
        if not isinstance(image.error, AccessDenied):
            if self.held:
                self.held.append(image)
            else:
                yield image
            return
        if self._readable is None:
            self.held.append(image)
            if len(self.held) >= _DENIED_IN_A_ROW:
                raise _no_rights(entry)
            return
        if isinstance(_fetch(self._readable, self._readable.uri, self._settings), AccessDenied):
            raise _no_rights(entry)
        yield image


def _no_rights(entry: FileEntry) -> StorageError:
    return StorageError(
        f"{redact(entry.uri)}: access denied, and to the images before it as well; check the permissions or credentials"
    )


def _fetch(
    entry: FileEntry, listed_in: str, settings: InputSettings, web: WebReach | None = None
) -> bytes | ImageError:
    if refused(entry, listed_in, settings):
        return ImageError(
            "unreadable",
            "a remote manifest may not name local files; input.allow_local_in_remote_manifests=true permits it",
        )
    try:
        data = fetch(entry, settings)
        if web is not None and scheme_of(entry.uri) in ("http", "https"):
            web.answered(entry.location)
        return data
    except Unreachable as error:
        if web is None or not web.is_lost():
            return error
        raise StorageError(
            f"{redact(entry.uri)}: {error.message}; no web server that answered before does so now"
        ) from error.__cause__
    except ImageError as error:
        return error
    except DataEngineError:
        raise
    except MemoryError:
        return ImageError("out_of_memory", "not enough memory to fetch it; lower input.max_image_bytes")
    except Exception as error:  # one image never fails a shard, whatever a back end may raise
        return ImageError("unreadable", f"{type(error).__name__}: {' '.join(redact(str(error)).split())[:300]}")
