"""What a version of duplicates leaves out: images, and masks of images that stay."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from data_engine.dataset.duplicates import DUPLICATES, MASK_DUPLICATES, DedupVersion, read_table

_BETWEEN = pa.scalar("\0")  # an image's id and the number of its mask


class LeftOut:
    """Memory: about 100 bytes an image that is left out, and 200 bytes one of which masks are."""

    def __init__(self, root: str, version: DedupVersion) -> None:
        """Raises DatasetError for a table of the version that is gone or damaged."""
        table = read_table(root, version.duplicates, DUPLICATES)
        self._ids = table.filter(pc.invert(table["keep"]))["image_id"].combine_chunks()
        self.images: frozenset[str] = frozenset(self._ids.to_pylist())
        part = version.mask_duplicates
        masks = read_table(root, part, MASK_DUPLICATES) if part is not None else MASK_DUPLICATES.empty_table()
        self._masks = masks.combine_chunks()
        runs = pc.run_end_encode(masks["image_id"].combine_chunks())  # an image's rows lie together
        bounds = [0, *runs.run_ends.to_pylist()]
        self._places = dict(zip(runs.values.to_pylist(), pairwise(bounds), strict=True))

    def masks_kept(self, image_id: str, masks: pa.Table) -> pa.Table:
        """Of the masks of an image those that stay."""
        place = self._places.get(image_id)
        if place is None:
            return masks
        gone = self._masks["mask_id"].slice(place[0], place[1] - place[0])
        return masks.filter(pc.invert(pc.is_in(masks["mask_id"], gone)))

    def kept(self, table: str) -> pc.Expression:
        """What rows of "images", "masks" or "rejects" must be to stay."""
        images = ~pc.field("image_id").isin(self._ids)
        if table != "masks" or not self._places:
            return images
        key = pc.binary_join_element_wise(pc.field("image_id"), pc.field("mask_id").cast(pa.string()), _BETWEEN)
        numbers = self._masks["mask_id"].cast(pa.string())
        gone = pc.binary_join_element_wise(self._masks["image_id"], numbers, _BETWEEN)
        return images & ~key.isin(gone.combine_chunks())
