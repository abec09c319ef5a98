"""From points to candidates: the prompts of one window, in chunks that the device likes.

On a CPU several chunks run side by side, each on one thread. Splitting every operation between threads instead makes
them wait for each other thousands of times an image, and for milliseconds each time when another program is about.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from rlemasklib import RLEMask
from torch import Tensor

from data_engine.errors import DataEngineError
from data_engine.masks import rle
from data_engine.masks.candidates import Candidates, Patch
from data_engine.masks.floors import Floors
from data_engine.masks.gpu_upsample import GpuUpsampler
from data_engine.masks.grid import CropWindow
from data_engine.masks.image_masks import MaskCounts
from data_engine.masks.rejects import Verdict, is_stable, judge
from data_engine.masks.settings import MaskSettings
from data_engine.masks.stages import Stages
from data_engine.masks.upsample import Upsampler, upsampler_for
from data_engine.sam.device_errors import is_out_of_memory
from data_engine.sam.resize import scale_points
from data_engine.sam.segmenter import Decoded, Embeddings, Segmenter, View

log = logging.getLogger(__name__)

EDGE_TOLERANCE = 20  # pixels from an inner crop edge within which a box counts as cut off (reference: hard-coded)


_Answer = tuple[Candidates, MaskCounts]


class NonFiniteOutput(DataEngineError):
    """The model gave NaN or infinity for this image. They pass or fail a comparison by accident, so none is used."""


@dataclass(frozen=True, slots=True)
class SeenWindow:
    """One window of an image, encoded."""

    height: int  # of the whole image
    width: int
    index: int  # among the image's windows
    window: CropWindow
    view: View
    embeddings: Embeddings
    place: int  # of the view among the embeddings
    grid: Tensor | None = None  # 2xP int64: row and column of the logits under points that masks shall be read at
    floors: Floors | None = None  # keep also what the filters reject, down to these


class Prompter:
    """Prompts a segmenter and filters its answers. Remembers, for all images to come, how many prompts memory holds."""

    def __init__(self, segmenter: Segmenter, settings: MaskSettings, stages: Stages) -> None:
        self._segmenter = segmenter
        self._settings = settings
        self._stages = stages
        self._chunk = min(settings.points_per_batch or segmenter.prompts_per_chunk, segmenter.prompts_per_chunk)
        self._threads = segmenter.prompt_threads
        self._pool: ThreadPoolExecutor | None = None

    @property
    def points_at_once(self) -> int:
        """How many prompts go through the model together: fewer than were set once memory has run out."""
        return self._chunk

    def candidates(self, seen: SeenWindow, points: np.ndarray, counts: MaskCounts) -> Iterator[Candidates]:
        """Clicks on points (Px2, pixels of the window) and yields what passes the filters, in their order; where the
        window has floors, also what does not and is above the floor of the predicted IoU.

        Adds to `counts` what became of all answers. Raises NonFiniteOutput.
        """
        start = 0
        while start < len(points):
            for found, counted in self._until_memory_runs_out(seen, points[start:]):
                start += self._chunk
                counts.add(counted)
                yield found
            if start < len(points):  # here the error is gone, and with it the tensors that its traceback held
                self._shrink(min(self._chunk, len(points) - start))

    def _until_memory_runs_out(self, seen: SeenWindow, points: np.ndarray) -> Iterator[_Answer]:
        with self._running(seen, points) as answers:
            for answer in answers:
                try:
                    result = answer()
                except Exception as error:
                    if not is_out_of_memory(error) or self._chunk == 1:
                        raise
                    return
                yield result

    @contextmanager
    def _running(self, seen: SeenWindow, points: np.ndarray) -> Iterator[Iterator[Callable[[], _Answer]]]:
        """The answers to all chunks, in order, while as many are at work as there are threads."""
        upsampler = upsampler_for(
            self._segmenter.logits_size,
            self._segmenter.image_size,
            seen.view.input_shape,
            seen.view.shape,
            self._segmenter.device,
        )
        chunks = [points[start : start + self._chunk] for start in range(0, len(points), self._chunk)]
        if self._threads == 1:
            yield (partial(self._answer, chunk, seen, upsampler) for chunk in chunks)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "prompts", initializer=_one_thread)
        at_work: deque[Future[_Answer]] = deque()

        def answers(pool: ThreadPoolExecutor) -> Iterator[Callable[[], _Answer]]:
            for chunk in chunks:
                at_work.append(pool.submit(self._answer, chunk, seen, upsampler))
                if len(at_work) > self._threads:  # one more than threads, so that none waits for the caller
                    yield at_work.popleft().result
            while at_work:
                yield at_work.popleft().result

        try:
            yield answers(self._pool)
        finally:
            for answer in at_work:
                answer.cancel()
            wait(at_work)  # what is at work holds memory

    def _shrink(self, tried: int) -> None:
        """Results do not depend on it."""
        self._chunk = max(1, tried // 2)
        torch.cuda.empty_cache()
        log.warning("out of memory with %d prompts at a time: going on with %d", tried, self._chunk)

    @torch.inference_mode()
    def _answer(self, points: np.ndarray, seen: SeenWindow, upsampler: Upsampler | GpuUpsampler) -> _Answer:
        """Clicks on some points at once. All other tensors are gone when it returns."""
        segmenter, settings, window = self._segmenter, self._settings, seen.window
        with self._stages.measure("prompt decode", self._threads):
            frame_points = torch.from_numpy(scale_points(points, window.shape, segmenter.image_size))
            labels = torch.ones(len(points), 1, dtype=torch.int)
            decoded = segmenter.decode(seen.embeddings, seen.place, points=frame_points[:, None], labels=labels)
            iou = decoded.iou.cpu()
            if not torch.isfinite(iou).all():
                raise NonFiniteOutput("the mask decoder gave NaN or infinity; try precision: reference")
        least_iou = settings.pred_iou_thresh if seen.floors is None else seen.floors.predicted_iou
        wanted = passes_iou(iou, least_iou)
        with self._stages.measure("masks", self._threads):
            if seen.floors is None or segmenter.device.type == "cpu":  # which computes prompt by prompt
                logits = decoded.logits(wanted)
            else:
                logits = logits_apart(decoded, wanted, passes_iou(iou, settings.pred_iou_thresh))
        with self._stages.measure("upsample + score", self._threads):
            measured = upsampler.measure(logits, segmenter.mask_threshold, settings.stability_score_offset)
            corner = np.array([[window.x0, window.y0]])
            boxes = measured.boxes + np.tile(corner, 2)
            on_edge = near_inner_edge(boxes, window, seen.height, seen.width)
            scores = iou[wanted].numpy()
            verdict = judge(settings, scores, measured.stability, measured.area, on_edge, seen.height * seen.width)
            finite = torch.isfinite(logits).flatten(1).all(1).cpu().numpy()
            if not finite[verdict != Verdict.IOU].all():
                raise NonFiniteOutput("the mask decoder gave NaN or infinity; try precision: reference")
            kept = drawn = np.flatnonzero(verdict == Verdict.PASSED)
            if seen.floors is not None:
                kept = np.arange(len(verdict))
                drawn = np.flatnonzero(is_stable(measured.stability, seen.floors.stability))
            masks: dict[int, Patch | RLEMask] = {
                i: Patch(cells, measured.box_region(i), window, upsampler)
                for i, cells in zip(
                    drawn.tolist(), upsampler.keep(logits, measured.regions, drawn.tolist()), strict=True
                )
            }
            covers = None
            if seen.grid is not None:
                of_masks = torch.from_numpy(kept).to(logits.device)[:, None]
                covers = logits[of_masks, seen.grid[0], seen.grid[1]] > segmenter.mask_threshold
        nothing = rle.from_boundaries(np.zeros(0, np.int64), seen.height, seen.width)
        found = Candidates(
            boxes=boxes[kept],
            predicted_iou=scores[kept],
            stability=measured.stability[kept],
            area=measured.area[kept],
            points=points[wanted.nonzero()[:, 0].numpy()[kept]] + corner,
            window=np.full(len(kept), seen.index),
            verdict=verdict[kept],
            number=np.zeros(len(kept), np.int64),
            masks=[masks.get(i, nothing) for i in kept.tolist()],
            covers=covers,
        )
        rejected = np.bincount(verdict, minlength=len(Verdict))
        return found, MaskCounts(
            candidates=wanted.numel(),
            rejected_iou=wanted.numel() - len(boxes) + int(rejected[Verdict.IOU]),
            rejected_stability=int(rejected[Verdict.STABILITY]),
            rejected_edge=int(rejected[Verdict.EDGE]),
            rejected_area=int(rejected[Verdict.AREA]),
        )


def passes_iou(iou: Tensor, threshold: float) -> Tensor:
    """PxM predicted IoU -> PxM bool. A threshold of 0 lets everything pass."""
    return iou > threshold if threshold > 0 else torch.ones_like(iou, dtype=torch.bool)


def logits_apart(decoded: Decoded, wanted: Tensor, first: Tensor) -> Tensor:
    """The logits of the wanted masks (PxM bool), those of `first` (PxM bool, all wanted) computed on their own.

    On a GPU the last bits of a mask can depend on how many are computed with it; so they do not depend on the others.
    """
    logits = [decoded.logits(first), decoded.logits(wanted & ~first)]
    order = torch.cat([first.flatten().nonzero(), (wanted & ~first).flatten().nonzero()])[:, 0].argsort()
    return torch.cat(logits)[order.to(logits[0].device)]


def near_inner_edge(boxes: np.ndarray, window: CropWindow, height: int, width: int) -> np.ndarray:
    """Whether a box (Nx4, image frame) comes close to a side of its crop that is not a side of the image: N bool."""
    crop = np.array([window.x0, window.y0, window.x1, window.y1])
    image = np.array([0, 0, width, height])
    near_crop = np.abs(boxes - crop) <= EDGE_TOLERANCE
    near_image = np.abs(boxes - image) <= EDGE_TOLERANCE
    return (near_crop & ~near_image).any(1)


def _one_thread() -> None:
    torch.set_num_threads(1)
