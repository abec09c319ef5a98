"""Embeddings kept beside a dataset, so that each image is embedded once for each model.

`_dedup/embeddings-<first 12 digits of the model's sha256>-<owner>-<number>.parquet`: image_id, embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_engine.dedup.kept_files import KeptFiles

IMAGES_PER_FILE = 20_000  # what a run that is killed loses at most

_POOLING = "mean over the valid cells of the image embedding"
_ROWS = 4096


class EmbeddingStore:
    """The embeddings of one model beside the dataset at `root`."""

    def __init__(self, root: str, fingerprint: str, model_sha256: str) -> None:
        """fingerprint: of the dataset's plan; embeddings of another one's images do not count."""
        origin = {"fingerprint": fingerprint, "model_sha256": model_sha256, "pooling": _POOLING}
        self._files = KeptFiles(root, f"embeddings-{model_sha256[:12]}", origin, "its embeddings")

    def read(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids and vectors (BxC float32), some thousands at a time. Raises DatasetError for a damaged file."""
        for name in self._files.names():
            _, table = self._files.read(name) or (None, None)
            for batch in table.to_batches(_ROWS) if table is not None else ():
                yield batch["image_id"].to_pylist(), _matrix(batch["embedding"])

    def writer(self, folder: Path) -> EmbeddingWriter:
        """folder: for files on their way, on this machine."""
        return EmbeddingWriter(self._files, folder)


class EmbeddingWriter:
    """Gathers embeddings and puts them into files of IMAGES_PER_FILE."""

    def __init__(self, files: KeptFiles, folder: Path) -> None:
        self._files, self._folder = files, folder
        self._ids: list[str] = []
        self._vectors: list[np.ndarray] = []

    def add(self, ids: list[str], vectors: np.ndarray) -> None:
        self._ids += ids
        self._vectors.append(vectors)
        if len(self._ids) >= IMAGES_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Puts what has been gathered, if anything."""
        if not self._ids:
            return
        vectors = np.concatenate(self._vectors)
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
        table = pa.table({"image_id": pa.array(self._ids, pa.string()), "embedding": values})
        self._files.put(table, self._folder)
        self._ids, self._vectors = [], []


def _matrix(embeddings: pa.FixedSizeListArray) -> np.ndarray:
    """BxC float32; a slice's own rows, not those of the whole that it lies in."""
    width = embeddings.type.list_size
    return np.asarray(embeddings.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)
