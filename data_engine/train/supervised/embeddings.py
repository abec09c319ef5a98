"""Image embeddings of a frozen encoder, kept so that each view is encoded once.

The key is the content of the view and the sha256 of the model, so nothing that is kept can be stale. Embeddings are
kept, and used from the first time on, in float16: a run that was cut goes on with the same numbers.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data_engine.errors import StorageError
from data_engine.train.supervised.views import Example


class Kept(Protocol):
    """Arrays by key, no more than so many bytes of them."""

    def get(self, key: str) -> np.ndarray | None: ...

    def put(self, key: str, array: np.ndarray) -> None:
        """Keeps an array, unless there is no room for it."""
        ...


def key_of(example: Example, model: str) -> str:
    digest = hashlib.blake2b(digest_size=20)
    digest.update(f"{model} {example.size}".encode())
    digest.update(example.pixels.numpy().tobytes())
    return digest.hexdigest()


def rounded(embedding: Tensor) -> Tensor:
    """As it is after being kept."""
    return embedding.to(torch.float16).float()


class InMemory:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._arrays: dict[str, np.ndarray] = {}

    def get(self, key: str) -> np.ndarray | None:
        return self._arrays.get(key)

    def put(self, key: str, array: np.ndarray) -> None:
        if key not in self._arrays and self._size + array.nbytes <= self._limit:
            self._arrays[key] = array
            self._size += array.nbytes


class OnDisk:
    """A folder of .npy files, which later runs use again. Files of earlier runs make room, the oldest first."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = sorted(_files(folder))
        except OSError as error:
            raise StorageError(
                f"{folder} cannot keep embeddings: {error.strerror}; set run.embeddings: memory"
            ) from None
        self._earlier = OrderedDict((key, size) for _, key, size in files)
        self._size = sum(self._earlier.values())
        self._ours: dict[str, int] = {}

    def get(self, key: str) -> np.ndarray | None:
        if key not in self._ours and key not in self._earlier:
            return None
        try:
            array = np.load(self._folder / f"{key}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # gone, or cut off by a crash: encoded again
            self._size -= self._earlier.pop(key, 0) + self._ours.pop(key, 0)
            return None
        if key in self._earlier:
            self._ours[key] = self._earlier.pop(key)
        return array

    def put(self, key: str, array: np.ndarray) -> None:
        size = array.nbytes + 128  # of an .npy file
        while self._size + size > self._limit and self._earlier:
            oldest, freed = self._earlier.popitem(last=False)
            (self._folder / f"{oldest}.npy").unlink(missing_ok=True)
            self._size -= freed
        if self._size + size > self._limit:
            return
        temporary = self._folder / f".{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("wb") as file:
                np.save(file, array)
            temporary.replace(self._folder / f"{key}.npy")
        except OSError:
            temporary.unlink(missing_ok=True)
            self._limit = 0  # the disk is full: nothing more is kept
            return
        self._ours[key] = size
        self._size += size


def _files(folder: Path) -> Iterator[tuple[int, str, int]]:
    """When each was written, its key and its size. Other runs may make room while they are looked at."""
    for file in folder.glob("*.npy"):
        with suppress(FileNotFoundError):
            found = file.stat()
            yield found.st_mtime_ns, file.stem, found.st_size
