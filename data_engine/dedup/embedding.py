"""One vector an image: the mean of its SAM image embedding, of the original that the dataset was made from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import numpy as np

from data_engine.dataset.export.pieces import Slices
from data_engine.dataset.reader import MaskDataset
from data_engine.images.shard import ImageError
from data_engine.pipeline.originals import Originals
from data_engine.sam.segmenter import Segmenter, View


def pooled_embeddings(segmenter: Segmenter, views: list[View]) -> np.ndarray:
    """V views -> VxC float32: the mean over the cells that lie in the image as a whole. Padding does not count."""
    features = segmenter.encode(views).features
    cells = features.shape[-1]
    means = []
    for feature, view in zip(features, views, strict=True):
        height, width = (max(1, side * cells // segmenter.image_size) for side in view.input_shape)
        means.append(feature[:, :height, :width].float().mean((1, 2)).cpu().numpy())
    return np.stack(means)


def embed_originals(
    dataset: MaskDataset,
    originals: Originals,
    wanted: Collection[str],
    segmenter: Segmenter,
    on_image: Callable[[], None] = lambda: None,
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Ids of wanted images and their vectors (BxC float32), batch by batch in the order of the dataset.

    Images whose original is gone, has changed or has no finite embedding are passed over. on_image: after each wanted
    image, embedded or not. In memory: one batch of images.
    """
    ids: list[str] = []
    views: list[View] = []
    for image_id, pixels in _pictures(dataset, originals, wanted):
        on_image()
        if pixels is None:
            continue
        ids.append(image_id)
        views.append(segmenter.prepare(pixels))
        if len(views) == segmenter.views_per_batch:
            yield _finite(ids, pooled_embeddings(segmenter, views))
            ids, views = [], []
    if views:
        yield _finite(ids, pooled_embeddings(segmenter, views))


def _pictures(
    dataset: MaskDataset, originals: Originals, wanted: Collection[str]
) -> Iterator[tuple[str, np.ndarray | None]]:
    for span in Slices.of(dataset).whole:
        rows = [row for row, image_id in enumerate(dataset.image_ids(span.record)) if image_id in wanted]
        if not rows:
            continue
        for image, data in originals.read(dataset, replace(span, start=rows[0], stop=rows[-1] + 1)):
            if image.image_id in wanted:
                yield image.image_id, _decoded(originals, data)


def _decoded(originals: Originals, data: bytes | None) -> np.ndarray | None:
    try:
        return originals.decoder.decode(data) if data is not None else None
    except ImageError:
        return None


def _finite(ids: list[str], vectors: np.ndarray) -> tuple[list[str], np.ndarray]:
    good = np.isfinite(vectors).all(axis=1)
    return [image_id for image_id, fine in zip(ids, good, strict=True) if fine], vectors[good]
