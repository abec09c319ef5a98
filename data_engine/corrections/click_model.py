"""Clicks and boxes on one image -> the masks that a model answers. Images that were encoded last are kept."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from data_engine.errors import ModelFailure, UsageError

if TYPE_CHECKING:
    from data_engine.sam.segmenter import Embeddings, SamSegmenter

_KEPT = 32  # encoded images, about 4 MB each with SAM's sizes: of each of ten people this one, the next and the last
_MOST_POINTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Clicks (x, y, 1 for foreground or 0 for background) and at most one box (x0, y0, x1, y1), in pixels."""

    points: tuple[tuple[float, float, int], ...] = ()
    box: tuple[float, float, float, float] | None = None

    def checked(self, height: int, width: int) -> Prompts:
        """Raises UsageError for what is no prompt on an image of this size; a box is cut at its edge."""
        if not self.points and self.box is None:
            raise UsageError("a mask needs a click or a box")
        if len(self.points) > _MOST_POINTS:
            raise UsageError(f"{len(self.points)} clicks: at most {_MOST_POINTS}")
        for x, y, label in self.points:
            if not (0 <= x <= width and 0 <= y <= height) or label not in (0, 1):
                raise UsageError(
                    f"click ({x:g}, {y:g}) {label}: use a place in the {width} x {height} image, and 0 or 1"
                )
        if self.box is None:
            if all(label == 0 for *_, label in self.points):
                raise UsageError("click on the thing first, then on what is not part of it")
            return self
        x0, y0, x1, y1 = self.box
        x0, x1 = sorted((min(max(x0, 0), width), min(max(x1, 0), width)))
        y0, y1 = sorted((min(max(y0, 0), height), min(max(y1, 0), height)))
        if x1 - x0 < 1 or y1 - y0 < 1:
            raise UsageError("the box is smaller than a pixel")
        return Prompts(points=self.points, box=(x0, y0, x1, y1))

    def columns(self) -> dict[str, list[Any]]:
        """As they are stored: SAM's own labels, where the corners of a box are points with labels 2 and 3."""
        corners = [] if self.box is None else [(*self.box[:2], 2), (*self.box[2:], 3)]
        x, y, label = zip(*self.points, *corners, strict=True)
        return {"point_x": list(x), "point_y": list(y), "point_label": list(label)}


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskAnswer:
    """A mask of the model."""

    bbox_x: int
    bbox_y: int
    bbox_w: int
    bbox_h: int
    area: int
    predicted_iou: float
    stability_score: float
    counts: str


@dataclass(frozen=True, slots=True)
class _Seen:
    """An image as the model has encoded it."""

    embeddings: Embeddings
    input_shape: tuple[int, int]  # (height, width) in the model's frame
    shape: tuple[int, int]  # and in pixels


class ClickModel:
    """A model that is loaded when it is first asked. Safe among threads."""

    def __init__(
        self, name: str, device: str = "auto", expected_sha256: str | None = None, stability_offset: float = 1.0
    ) -> None:
        """expected_sha256: of its weights; others are refused. stability_offset: in logits, of the stability score."""
        self.name = name
        self._device = device
        self._expected = expected_sha256
        self._offset = stability_offset
        self._segmenter: SamSegmenter | None = None
        self._kept: OrderedDict[Hashable, _Seen] = OrderedDict()
        self._answered: OrderedDict[Hashable, list[MaskAnswer]] = OrderedDict()
        self._lock = Lock()
        self._encoding: defaultdict[Hashable, Lock] = defaultdict(Lock)

    @property
    def sha256(self) -> str:
        checkpoint = self._loaded().checkpoint
        return checkpoint.sha256 if checkpoint is not None else ""

    def prepare(self, key: Hashable, pixels: Callable[[], np.ndarray]) -> None:
        """Encodes an image, HxWx3 uint8, unless it is kept by its key. Raises CheckpointError, UsageError."""
        self._seen(key, pixels)

    def answers(self, key: Hashable, pixels: Callable[[], np.ndarray], prompts: Prompts) -> list[MaskAnswer]:
        """The masks for checked prompts, the surest first: up to three for a single click, else one; none is empty.

        The same prompts give the same masks: nothing of earlier answers goes in.
        """
        with self._lock:
            answered = self._answered.get((key, prompts))
        if answered is None:
            seen = self._seen(key, pixels)
            with self._fits():
                answered = self._answer(seen, prompts)
            with self._lock:
                self._answered[key, prompts] = answered
                if len(self._answered) > _KEPT:
                    self._answered.popitem(last=False)
        return answered

    def _answer(self, seen: _Seen, prompts: Prompts) -> list[MaskAnswer]:
        """As `SamPredictor.predict`, but only pixels that can be in a mask are ever computed."""
        import torch

        from data_engine.masks import rle
        from data_engine.masks.grid import CropWindow
        from data_engine.masks.upsample import upsampler_for
        from data_engine.sam.resize import scale_points

        segmenter, (height, width) = self._loaded(), seen.shape
        threshold, window = segmenter.mask_threshold, CropWindow(0, 0, width, height, 0)

        def in_frame(points: Any) -> torch.Tensor:
            scaled = scale_points(np.array(points, np.float64).reshape(-1, 2), seen.shape, segmenter.image_size)
            return torch.as_tensor(scaled, dtype=torch.float)

        with torch.inference_mode():
            decoded = segmenter.decode(
                seen.embeddings,
                0,
                points=in_frame([point[:2] for point in prompts.points])[None] if prompts.points else None,
                labels=torch.tensor([[point[2] for point in prompts.points]], dtype=torch.int)
                if prompts.points
                else None,
                boxes=None if prompts.box is None else in_frame(prompts.box).reshape(1, 4),
                multimask=len(prompts.points) == 1 and prompts.box is None,
            )
            logits = decoded.logits(torch.ones_like(decoded.iou, dtype=torch.bool))
            upsampler = upsampler_for(
                segmenter.logits_size, segmenter.image_size, seen.input_shape, seen.shape, segmenter.device
            )
            measured = upsampler.measure(logits, threshold, self._offset)
            scores = decoded.iou[0].cpu().numpy()
            order = [int(i) for i in np.argsort(-scores, kind="stable") if measured.area[i]]
            cells = upsampler.keep(logits, measured.regions, order)
            regions = [measured.box_region(i) for i in order]
            runs = upsampler.runs(cells, regions, threshold, window, height, width)
        found = []
        for i, mask in zip(order, runs, strict=True):
            x0, y0, x1, y1 = measured.boxes[i].tolist()
            found.append(
                MaskAnswer(
                    bbox_x=x0,
                    bbox_y=y0,
                    bbox_w=x1 - x0 + 1,
                    bbox_h=y1 - y0 + 1,
                    area=int(measured.area[i]),
                    predicted_iou=float(scores[i]),
                    stability_score=float(measured.stability[i]),
                    counts=rle.counts_string(mask),
                )
            )
        return found

    def _seen(self, key: Hashable, pixels: Callable[[], np.ndarray]) -> _Seen:
        with self._encoding[key]:  # whoever waits finds what the one before has encoded
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            segmenter = self._loaded()
            image = pixels()
            with self._fits():
                view = segmenter.prepare(image)
                seen = _Seen(segmenter.encode([view]), view.input_shape, view.shape)
            with self._lock:
                self._kept[key] = seen
                while len(self._kept) > _KEPT:
                    self._encoding.pop(self._kept.popitem(last=False)[0], None)
        return seen

    def _loaded(self) -> SamSegmenter:
        from data_engine.sam.segmenter import load_segmenter

        with self._encoding["the model itself"]:
            if self._segmenter is None:
                with self._fits():
                    self._segmenter = load_segmenter(self.name, self._device, expected_sha256=self._expected)
        return self._segmenter

    @contextmanager
    def _fits(self) -> Iterator[None]:
        """Says what there is to do where the memory does not suffice."""
        from data_engine.sam.device_errors import is_out_of_memory

        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ModelFailure(
                f"{self.name} does not fit in the memory of the device ({self._device}) beside what runs there: start "
                "data-engine view with --device cpu or another one, or with --model and a smaller one"
            ) from None
