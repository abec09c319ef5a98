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
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rlemasklib import RLEMask

from data_engine.errors import DataEngineError, UsageError
from data_engine.masks import regions, rle
from data_engine.masks.candidates import Candidates, Patch, put_into_runs
from data_engine.masks.grid import CropWindow, crop_windows, layer_point_grids
from data_engine.masks.image_masks import ImageMasks, MaskCounts, OutputMode
from data_engine.masks.settings import MaskSettings
from data_engine.masks.stages import Stages
from data_engine.masks.suppress import box_nms
from data_engine.masks.upsample import Upsampler, upsampler_for
from data_engine.sam.device_errors import is_out_of_memory
from data_engine.sam.resize import scale_points
from data_engine.sam.segmenter import Embeddings, Segmenter, View

log = logging.getLogger(__name__)

EDGE_TOLERANCE = 20  # pixels from an inner crop edge within which a box counts as cut off (reference: hard-coded)


class NonFiniteOutput(DataEngineError):
    """The model gave NaN or infinity for this image. They pass or fail a comparison by accident, so none is used."""


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
        self._chunk = min(self.settings.points_per_batch or segmenter.prompts_per_chunk, segmenter.prompts_per_chunk)
        self._views = segmenter.views_per_batch
        self._tried_again = False
        self.stages = Stages(segmenter.device)

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
    def run(self, image: PreparedImage, interrupted: Callable[[], bool] = lambda: False) -> ImageMasks:
        """The masks of a prepared image. Raises NonFiniteOutput, and Interrupted soon after `interrupted` says so."""
        counts = MaskCounts()
        by_window: list[Candidates] = []
        for index, embeddings, place in self._encoded(image.views):
            chunks: list[Candidates] = []
            held = sum(group.patch_bytes() for group in by_window)
            for chunk in self._window_candidates(image, index, embeddings, place, counts):
                if interrupted():
                    raise Interrupted
                chunks.append(chunk)
                held += chunk.patch_bytes()
                if held > self.memory_budget:
                    for group in by_window + chunks:
                        self._put_into_runs(image, group)
                    held = 0
            with self.stages.measure("suppress"):
                in_window = Candidates.concatenate(chunks)
                kept = box_nms(in_window.boxes, in_window.predicted_iou, self.settings.box_nms_thresh)
                by_window.append(in_window.select(kept))
        with self.stages.measure("suppress"):
            found = Candidates.concatenate(by_window)
            if len(image.windows) > 1:
                # Masks of smaller crops win: the object was seen larger there.
                areas = np.array([window.area for window in image.windows], np.float32)
                found = found.select(box_nms(found.boxes, 1 / areas[found.window], self.settings.crop_nms_thresh))
        self._put_into_runs(image, found)
        if self.settings.min_mask_region_area > 0:
            with self.stages.measure("regions"):
                found = self._clean_regions(found, counts)
        counts.rejected_nms = (
            counts.candidates
            - len(found)
            - (counts.rejected_iou + counts.rejected_stability + counts.rejected_edge + counts.rejected_area)
        )
        with self.stages.measure("RLE"):
            return _columns(image, found, counts)

    @property
    def points_at_once(self) -> int:
        """How many prompts go through the model together: fewer than were set once memory has run out."""
        return self._chunk

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

    def _window_candidates(
        self, image: PreparedImage, index: int, embeddings: Embeddings, place: int, counts: MaskCounts
    ) -> Iterator[Candidates]:
        """Clicks through one window and yields what passes the filters, chunk by chunk."""
        segmenter, view = self.segmenter, image.views[index]
        height, width = view.shape
        upsampler = upsampler_for(
            segmenter.logits_size, segmenter.image_size, view.input_shape, view.shape, segmenter.device
        )
        points = self._grids[image.windows[index].layer] * np.array([[width, height]])
        start = 0
        while start < len(points):
            stop = start + self._chunk
            chunk = None
            try:
                chunk = self._candidates_at(points[start:stop], image, index, upsampler, embeddings, place, counts)
            except Exception as error:
                if not is_out_of_memory(error) or self._chunk == 1:
                    raise
            if chunk is None:  # here the error is gone, and with it the tensors that its traceback held
                self._shrink(min(self._chunk, len(points) - start))
                continue
            yield chunk
            start = stop

    def _shrink(self, tried: int) -> None:
        """Remembers that `tried` prompts at a time do not fit, for all images to come. Results do not depend on it."""
        self._chunk = max(1, tried // 2)
        torch.cuda.empty_cache()
        log.warning("out of memory with %d prompts at a time: going on with %d", tried, self._chunk)

    def _candidates_at(
        self,
        points: np.ndarray,
        image: PreparedImage,
        index: int,
        upsampler: Upsampler,
        embeddings: Embeddings,
        place: int,
        counts: MaskCounts,
    ) -> Candidates:
        """Clicks on some points (Px2, pixels of the window) at once. All other tensors are gone when it returns."""
        segmenter, settings, window = self.segmenter, self.settings, image.windows[index]
        with self.stages.measure("prompt decode"):
            frame_points = torch.from_numpy(scale_points(points, window.shape, segmenter.image_size))
            labels = torch.ones(len(points), 1, dtype=torch.int)
            decoded = segmenter.decode(embeddings, place, points=frame_points[:, None], labels=labels)
            iou = decoded.iou.cpu()
            if not torch.isfinite(iou).all():
                raise NonFiniteOutput("the mask decoder gave NaN or infinity; try precision: reference")
        wanted = (
            iou > settings.pred_iou_thresh if settings.pred_iou_thresh > 0 else torch.ones_like(iou, dtype=torch.bool)
        )
        with self.stages.measure("masks"):
            logits = decoded.logits(wanted)
        with self.stages.measure("upsample + score"):
            measured = upsampler.measure(logits, segmenter.mask_threshold, settings.stability_score_offset)
            if not torch.isfinite(logits).all():
                raise NonFiniteOutput("the mask decoder gave NaN or infinity; try precision: reference")
            corner = np.array([[window.x0, window.y0]])
            boxes = measured.boxes + np.tile(corner, 2)
            keep = np.ones(len(boxes), bool)
            if settings.stability_score_thresh > 0:
                keep = measured.stability >= np.float32(settings.stability_score_thresh)
            on_edge = keep & near_inner_edge(boxes, window, image.height, image.width)
            too_large = keep & ~on_edge & (settings.max_mask_area_fraction < 1)
            too_large &= measured.area >= settings.max_mask_area_fraction * image.height * image.width
            kept = np.flatnonzero(keep & ~on_edge & ~too_large)
            cells = upsampler.keep(logits, measured.regions, kept.tolist())
            found = Candidates(
                boxes=boxes[kept],
                predicted_iou=iou[wanted].numpy()[kept],
                stability=measured.stability[kept],
                area=measured.area[kept],
                points=points[wanted.nonzero()[:, 0].numpy()[kept]] + corner,
                window=np.full(len(kept), index),
                masks=[
                    Patch(mask, measured.box_region(i), window, upsampler)
                    for i, mask in zip(kept.tolist(), cells, strict=True)
                ],
            )
        # Counted last: whatever ran out of memory above is done again with fewer points.
        counts.candidates += wanted.numel()
        counts.rejected_iou += wanted.numel() - len(boxes)
        counts.rejected_stability += len(boxes) - int(keep.sum())
        counts.rejected_edge += int(on_edge.sum())
        counts.rejected_area += int(too_large.sum())
        return found

    def _put_into_runs(self, image: PreparedImage, found: Candidates) -> None:
        with self.stages.measure("RLE"):
            found.masks[:] = put_into_runs(found.masks, self.segmenter.mask_threshold, image.height, image.width)

    def _clean_regions(self, found: Candidates, counts: MaskCounts) -> Candidates:
        """Fills small holes, removes small islands, and suppresses once more, preferring masks that did not change."""
        min_area = self.settings.min_mask_region_area
        changed = np.zeros(len(found), bool)
        too_small = np.zeros(len(found), bool)
        for i, runs in enumerate(found.masks):
            assert isinstance(runs, RLEMask)
            filled = regions.fill_holes(runs, min_area)
            cleaned = regions.remove_islands(filled, min_area)
            pieces = regions.component_areas(filled)
            # As in the reference, a mask that is one small island counts as changed although it stays as it is.
            changed[i] = filled.area() != runs.area() or (pieces < min_area).any()
            too_small[i] = self.settings.drop_small_masks and pieces.max(initial=0) < min_area
            if changed[i]:
                found.masks[i], found.area[i], found.boxes[i] = cleaned, cleaned.area(), rle.box(cleaned)
        counts.rejected_area += int(too_small.sum())
        found, changed = found.select(~too_small), changed[~too_small]
        threshold = max(self.settings.box_nms_thresh, self.settings.crop_nms_thresh)
        return found.select(box_nms(found.boxes, (~changed).astype(np.float32), threshold))


def near_inner_edge(boxes: np.ndarray, window: CropWindow, height: int, width: int) -> np.ndarray:
    """Whether a box (Nx4, image frame) comes close to a side of its crop that is not a side of the image: N bool."""
    crop = np.array([window.x0, window.y0, window.x1, window.y1])
    image = np.array([0, 0, width, height])
    near_crop = np.abs(boxes - crop) <= EDGE_TOLERANCE
    near_image = np.abs(boxes - image) <= EDGE_TOLERANCE
    return (near_crop & ~near_image).any(1)


def _columns(image: PreparedImage, found: Candidates, counts: MaskCounts) -> ImageMasks:
    windows = np.array([[w.x0, w.y0, w.x1, w.y1, w.layer] for w in image.windows], np.int64)[found.window]
    return ImageMasks(
        height=image.height,
        width=image.width,
        counts=[rle.counts_string(runs) for runs in found.masks],
        boxes=found.boxes,
        area=found.area,
        predicted_iou=found.predicted_iou,
        stability_score=found.stability,
        points=found.points,
        crop_boxes=windows[:, :4],
        crop_layer=windows[:, 4],
        filtered=counts,
    )
