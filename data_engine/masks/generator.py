"""Automatic mask generation: click on a grid of points, in the image and in crops of it, and keep what is good.

`MaskGenerator` takes segment-anything's settings and returns its records (`automatic_mask_generator.py`), so a user
changes one import. Between the click and the record the order differs, where that is exact and cheaper:

    predicted IoU -> logits of the masks that passed -> stability, area and box -> filters -> suppression -> runs

The reference upsamples every mask before it looks at the predicted IoU, and puts every mask into runs before the
suppression that drops most of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from data_engine.errors import UsageError
from data_engine.masks.candidates import Candidates
from data_engine.masks.floors import Floors
from data_engine.masks.grid import CropWindow, crop_windows, layer_point_grids
from data_engine.masks.image_masks import ImageMasks, MaskCounts, OutputMode
from data_engine.masks.point_rounds import AdaptivePrompter
from data_engine.masks.prompting import NonFiniteOutput, Prompter, SeenWindow
from data_engine.masks.rejects import RejectLog, Verdict
from data_engine.masks.selection import Selection
from data_engine.masks.settings import MaskSettings
from data_engine.masks.stages import Stages
from data_engine.sam.device_errors import is_out_of_memory
from data_engine.sam.segmenter import Embeddings, Segmenter, View

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The caller asked `run` to stop. Nothing of the image is kept."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image cut and resized for the model: the host's share of the work, done ahead in another thread."""

    height: int
    width: int
    windows: list[CropWindow]
    views: list[View]


class MaskGenerator:
    """Every mask in an image, by prompting a segmenter with a grid of points.

        generator = MaskGenerator(load_segmenter("sam_vit_h"), points_per_side=32)
        records = generator.generate(image)

    Settings are those of `MaskSettings`. `memory_budget` bounds, in bytes, the pixels of candidates held before
    suppression; beyond it they are put into runs early, with the same result.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        settings: MaskSettings | None = None,
        *,
        output_mode: OutputMode = "binary_mask",
        memory_budget: int = 1 << 29,
        **overrides: Any,
    ) -> None:
        if output_mode not in ("binary_mask", "uncompressed_rle", "coco_rle"):
            raise UsageError(f"unknown output_mode {output_mode!r}: use binary_mask, uncompressed_rle or coco_rle")
        if overrides.get("point_grids") is not None:
            overrides.setdefault("points_per_side", None)
        self.settings = MaskSettings(**{**(asdict(settings) if settings else {}), **overrides})
        self.segmenter = segmenter
        self.output_mode: OutputMode = output_mode
        self.memory_budget = memory_budget
        self._grids = layer_point_grids(self.settings)
        self._views = segmenter.views_per_batch
        self._tried_again = False
        self.stages = Stages(segmenter.device)
        self._prompter = Prompter(segmenter, self.settings, self.stages)
        self._adaptive = None
        if self.settings.adaptive_points:
            self._adaptive = AdaptivePrompter(self._prompter, segmenter, self.settings, self.stages)

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """HxWx3 uint8 RGB -> one record a mask (see `ImageMasks.records`)."""
        return self.run(self.prepare(image)).records(self.output_mode)

    def generate_batch(self, images: Iterable[np.ndarray]) -> list[ImageMasks]:
        """Images, each HxWx3 uint8 RGB of any size -> their masks in columns.

        An image gives the same masks alone and in any batch. Raises NonFiniteOutput.
        """
        return [self.run(self.prepare(image)) for image in images]

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Cuts and resizes HxWx3 uint8. Host work only, safe to run in threads."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UsageError(f"an image is HxWx3 uint8, this one is {image.shape} {image.dtype}")
        height, width = image.shape[:2]
        windows = crop_windows(height, width, self.settings.crop_n_layers, self.settings.crop_overlap_ratio)
        views = [self.segmenter.prepare(image[w.y0 : w.y1, w.x0 : w.x1]) for w in windows]
        return PreparedImage(height, width, windows, views)

    @torch.inference_mode()
    def run(
        self,
        image: PreparedImage,
        interrupted: Callable[[], bool] = lambda: False,
        floors: Floors | None = None,
    ) -> ImageMasks:
        """The masks of a prepared image. Raises NonFiniteOutput, and Interrupted soon after `interrupted` says so.

        With floors, `ImageMasks.rejects` has what the filters rejected, down to there; the masks are the same.
        """
        counts = MaskCounts()
        by_window: list[Candidates] = []
        selection = Selection(
            self.settings, self.segmenter.mask_threshold, image.height, image.width, image.windows, self.stages
        )
        floors = floors.within(self.settings) if floors else None
        rejects = self._reject_log(floors)
        for index, embeddings, place in self._encoded(image.views):
            chunks: list[Candidates] = []
            held = sum(group.patch_bytes() for group in by_window)
            window, view = image.windows[index], image.views[index]
            seen = SeenWindow(image.height, image.width, index, window, view, embeddings, place, floors=floors)
            points = self._grids[window.layer] * np.array([window.shape[::-1]])
            for chunk in (self._adaptive or self._prompter).candidates(seen, points, counts):
                if interrupted():
                    raise Interrupted
                chunks.append(chunk)
                held += chunk.patch_bytes()
                if held > self.memory_budget:
                    for group in by_window + chunks:
                        selection.put_into_runs(group)
                    held = 0
            in_window = Candidates.concatenate(chunks)
            if self._adaptive:
                in_window = in_window.by_rows_of_points()
            if rejects:
                selection.put_into_runs(in_window)
                rejects.add(in_window)
                in_window = in_window.select(in_window.verdict == Verdict.PASSED)
            by_window.append(selection.of_window(in_window))
        found, small = selection.of_image(by_window)
        counts.rejected_area += len(small)
        counts.rejected_nms = counts.candidates - len(found) - counts.rejected
        masks = selection.columns(found, counts)
        return replace(masks, rejects=rejects.finish(found, small, selection.window_table())) if rejects else masks

    def _reject_log(self, floors: Floors | None) -> RejectLog | None:
        if floors is None:
            return None
        if self._adaptive:
            raise UsageError("adaptive_points keeps no rejects: which points it asks depends on the thresholds")
        return RejectLog(floors)

    @property
    def points_at_once(self) -> int:
        """How many prompts go through the model together: fewer than were set once memory has run out."""
        return self._prompter.points_at_once

    def _encoded(self, views: list[View]) -> Iterator[tuple[int, Embeddings, int]]:
        """(index of a view, embeddings, its place among them). The batches are an image's own, never of several."""
        start = 0
        while start < len(views):
            batch = views[start : start + self._views]
            embeddings = None
            with self.stages.measure("encode"):
                try:
                    embeddings = self.segmenter.encode(batch)
                except Exception as error:
                    if not is_out_of_memory(error) or (len(batch) == 1 and self._tried_again):
                        raise
                if embeddings is None:  # here the error is gone, and with it the tensors that its traceback held
                    self._tried_again = len(batch) == 1  # what others left in the allocator's cache may be enough
                    self._views = max(1, len(batch) // 2)
                    torch.cuda.empty_cache()
                    continue
                self._tried_again = False
                if not embeddings.finite():
                    raise NonFiniteOutput("the image encoder gave NaN or infinity; try precision: reference")
            for place in range(len(batch)):
                yield start + place, embeddings, place
            start += len(batch)
