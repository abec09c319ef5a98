"""The optional semantic stage: among the images that stay, those whose embeddings are nearly the same.

SemDeDup (arXiv 2303.09540) with the embeddings of a SAM: k-means, then all pairs within a cluster above a cosine. The
clusters of the stages before are joined through the images that stand for them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data_engine.dataset.reader import MaskDataset
from data_engine.dedup.cosine_pairs import join_similar
from data_engine.dedup.embedding import embed_originals
from data_engine.dedup.embedding_store import EmbeddingStore
from data_engine.dedup.kmeans import assign, choose_k, fit_centroids
from data_engine.dedup.settings import SemanticSettings
from data_engine.dedup.vectors import Vectors, reordered
from data_engine.errors import CheckpointError, DatasetError
from data_engine.pipeline.originals import Originals, relinked
from data_engine.pipeline.plan import read_plan
from data_engine.sam.checkpoints import identify
from data_engine.sam.segmenter import load_segmenter
from data_engine.sql.background import interruptible

if TYPE_CHECKING:
    import duckdb

_STAND = """
select image_id from images where image_id not in (select image_id from duplicates where not keep) order by image_id
"""
# The image that stays of each component, by the rule of `clusters.py`.
_KEPT = """
select image_id, first_value(image_id) over (partition by label order by pixels desc, n_masks desc, image_id) as of
from found join images using (image_id) order by image_id
"""
_MERGED = """
create table merged as
with standing as (
    select image_id, of as rep, reason, distance from duplicates
    union all
    select image_id, image_id, null, null from joined where image_id not in (select image_id from duplicates)
),
decided as (
    select standing.*, joined.distance as apart, coalesce(joined.of, rep) as kept
    from standing left join joined on joined.image_id = rep
)
select
    image_id,
    dense_rank() over (order by kept) - 1 as cluster_id,
    image_id = kept as keep,
    case when image_id = kept then null when rep = kept then reason else 'semantic' end as reason,
    case when image_id = kept then null when rep = kept then distance else apart end::float as distance,
    kept as of
from decided
"""
_MEMBERS = """
insert into members by name
select *, phash as cluster from images
where image_id in (select image_id from joined) and image_id not in (select image_id from members)
"""

Report = Callable[[str, int, int | None], None]


class SemanticStage:
    """What the stage needs, checked before any work."""

    def __init__(self, dataset: MaskDataset, settings: SemanticSettings) -> None:
        """Raises DatasetError for a dataset without a plan, CheckpointError for a model that cannot be had."""
        plan = read_plan(dataset.root)
        if plan is None:
            raise DatasetError(f"{dataset.root} has no plan that says where its images are: leave out --semantic")
        self._dataset, self._settings, self._plan = dataset, settings, plan
        self._model = settings.model or plan.model_name
        self._sha256 = identify(settings.model) if settings.model else plan.model_sha256

    def parameters(self, k: int) -> dict[str, Any]:
        """What decides the rows, as JSON values."""
        return {"model": self._sha256, "cosine": self._settings.cosine, "k": k}

    def merge(
        self, connection: duckdb.DuckDBPyConnection, folder: Path, keep_embeddings: bool, on_progress: Report
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """Joins clusters of `duplicates` and images in none of them where their embeddings are alike.

        folder: for the vectors, 3 KB an image with SAM's 256 numbers. keep_embeddings: beside the dataset. Returns the
        stage's parameters and counts. Raises DatasetError where not one original can be read.
        """
        ids = interruptible(lambda: _standing(connection), connection.interrupt)
        vectors = Vectors(ids, folder / "vectors.f32")
        for stored, values in self._store.read():
            vectors.add(stored, values)
        computed = self._embed(vectors, folder, keep_embeddings, on_progress)
        missing = len(ids) - int(vectors.present.sum())
        if ids and missing == len(ids):
            raise DatasetError(
                f"{self._dataset.root}: none of the originals of {missing:,} images can be read at {self._plan.input}; "
                "make that input reachable as it was (for a signed link: --input, signed anew), or leave out --semantic"
            )
        embedded, matrix = vectors.centered(folder / "centered.f32")
        k = choose_k(len(embedded))
        if embedded:
            found = self._components(matrix, k, folder, on_progress)
            interruptible(lambda: _join(connection, embedded, matrix, *found), connection.interrupt)
        compared = {"semantic_compared": len(embedded), "semantic_computed": computed, "semantic_missing": missing}
        return self.parameters(k), compared | self._counts(connection)

    @property
    def _store(self) -> EmbeddingStore:
        return EmbeddingStore(self._dataset.root, str(self._dataset.plan.get("fingerprint", "")), self._sha256)

    def _embed(self, vectors: Vectors, folder: Path, keep: bool, on_progress: Report) -> int:
        """Fills what is not there yet. Returns how many that were."""
        wanted = vectors.absent()
        if not wanted:
            return 0
        originals = Originals.of(relinked(self._plan, self._settings.input))
        segmenter = self._segmenter()
        writer = self._store.writer(folder)
        done = computed = 0

        def on_image() -> None:
            nonlocal done
            on_progress("embedding images", done := done + 1, len(wanted))

        try:
            for ids, values in embed_originals(self._dataset, originals, wanted, segmenter, on_image):
                computed += vectors.add(ids, values)
                if keep:
                    writer.add(ids, values)
        finally:
            writer.flush()  # also of a run that is interrupted
        return computed

    def _segmenter(self) -> Any:
        try:
            return load_segmenter(self._model, self._settings.device, expected_sha256=self._sha256)
        except CheckpointError as error:
            if self._settings.model:
                raise
            raise CheckpointError(f"the model that made the masks: {error}; or name one with --model") from None

    def _components(
        self, matrix: np.ndarray, k: int, folder: Path, on_progress: Report
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the matrix that have a like, and the label of each one's component."""
        on_progress("clustering embeddings", 0, None)
        clusters = assign(matrix, fit_centroids(matrix, k))
        order = np.argsort(clusters, kind="stable")
        together = reordered(matrix, order, folder / "together.f32")
        rows, labels = join_similar(
            together,
            clusters[order],
            self._settings.cosine,
            lambda done: on_progress("comparing embeddings", done, len(matrix)),
        )
        return order[rows.astype(np.int64)], labels

    def _counts(self, connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
        ((semantic, chained),) = connection.execute(
            "select count(*), count(*) filter (distance > ?) from duplicates where reason = 'semantic'",
            [1 - self._settings.cosine + 1e-6],
        ).fetchall()
        return {"semantic": semantic, "semantic_chained": chained}


def _standing(connection: duckdb.DuckDBPyConnection) -> list[str]:
    ids: list[str] = connection.sql(_STAND).to_arrow_table()["image_id"].to_pylist()
    return ids


def _join(
    connection: duckdb.DuckDBPyConnection, ids: list[str], matrix: np.ndarray, rows: np.ndarray, labels: np.ndarray
) -> None:
    """Rewrites `duplicates` with the components, and adds their images to `members`."""
    names = [ids[row] for row in rows]
    connection.register("found", pa.table({"image_id": pa.array(names, pa.string()), "label": labels}))
    kept = connection.sql(_KEPT).to_arrow_table()
    connection.unregister("found")
    row_of = dict(zip(names, rows.tolist(), strict=True))
    own, of = ([row_of[name] for name in kept[column].to_pylist()] for column in ("image_id", "of"))
    apart = [max(0.0, 1.0 - float(matrix[i] @ matrix[j])) for i, j in zip(own, of, strict=True)]
    joined = kept.append_column("distance", pa.array(apart, pa.float64()))
    connection.register("joined", joined)
    connection.execute(_MERGED)
    connection.execute(_MEMBERS)
    connection.unregister("joined")
    connection.execute("drop table duplicates; alter table merged rename to duplicates")
