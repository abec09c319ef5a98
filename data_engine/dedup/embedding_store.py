"""Embeddings kept beside a dataset, so that each image is embedded once for each model.

`_dedup/embeddings-<first 12 digits of the model's sha256>-<owner>-<number>.parquet`: each file is there as a whole or
not at all, under a name that no other process uses. The files of a model together are its embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_engine import __version__
from data_engine.dataset.duplicates import DEDUP_FOLDER
from data_engine.dataset.schema import read_metadata
from data_engine.dedup.versions import put_table, write_local
from data_engine.errors import DatasetError
from data_engine.pipeline.commit import new_owner
from data_engine.storage import filesystem, join, list_names, translated

IMAGES_PER_FILE = 20_000  # what a run that is killed loses at most

_POOLING = "mean over the valid cells of the image embedding"
_ROWS = 4096


class EmbeddingStore:
    """The embeddings of one model beside the dataset at `root`."""

    def __init__(self, root: str, fingerprint: str, model_sha256: str) -> None:
        """fingerprint: of the dataset's plan; embeddings of another one's images do not count."""
        self.root = root
        self._prefix = f"embeddings-{model_sha256[:12]}"
        self._origin = {"fingerprint": fingerprint, "model_sha256": model_sha256, "pooling": _POOLING}

    def read(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids and vectors (BxC float32), some thousands at a time. Raises DatasetError for a damaged file."""
        for name in sorted(list_names(join(self.root, DEDUP_FOLDER))):
            if name.startswith(f"{self._prefix}-") and name.endswith(".parquet"):
                yield from self._read(join(self.root, DEDUP_FOLDER, name))

    def _read(self, uri: str) -> Iterator[tuple[list[str], np.ndarray]]:
        fs, path = filesystem(uri)
        try:
            with translated(uri), fs.open(path) as file:
                table = pq.ParquetFile(file, page_checksum_verification=True)
                metadata = read_metadata(table.schema_arrow, uri)
                if any(metadata.get(name) != value for name, value in self._origin.items()):
                    return
                for batch in table.iter_batches(_ROWS, columns=["image_id", "embedding"]):
                    yield batch["image_id"].to_pylist(), _matrix(batch["embedding"])
        except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
            raise DatasetError(f"{uri} is damaged ({error}): delete it, and its embeddings are made anew") from None

    def writer(self, folder: Path) -> EmbeddingWriter:
        """folder: for files on their way, on this machine."""
        return EmbeddingWriter(self.root, self._prefix, self._origin, folder)


class EmbeddingWriter:
    """Gathers embeddings and puts them into files of IMAGES_PER_FILE."""

    def __init__(self, root: str, prefix: str, origin: dict[str, Any], folder: Path) -> None:
        self._root, self._folder = root, folder
        self._name = f"{prefix}-{new_owner()}"
        self._metadata = {**origin, "code_version": __version__}
        self._ids: list[str] = []
        self._vectors: list[np.ndarray] = []
        self._files = 0

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
        batch = pa.record_batch({"image_id": pa.array(self._ids, pa.string()), "embedding": values})
        local = self._folder / "embeddings.parquet"
        rows = write_local(local, batch.schema, [batch], self._metadata)
        put_table(self._root, local, f"{self._name}-{self._files:04d}", rows)
        local.unlink()
        self._files += 1
        self._ids, self._vectors = [], []


def _matrix(embeddings: pa.FixedSizeListArray) -> np.ndarray:
    """BxC float32; a slice's own rows, not those of the whole that it lies in."""
    width = embeddings.type.list_size
    return np.asarray(embeddings.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)
