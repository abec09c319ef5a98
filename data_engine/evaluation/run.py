"""The measurement: image after image, each encoded once, then clicks, boxes, baselines and automatic generation."""

from __future__ import annotations

import logging
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from rlemasklib import RLEMask

from data_engine.errors import SourceError, UsageError
from data_engine.evaluation.answers import Answers, box_answers, click_answers
from data_engine.evaluation.average_recall import AverageRecall
from data_engine.evaluation.baselines import BaselineAnswers, felzenszwalb_answers, flood_answers
from data_engine.evaluation.clicks import deepest_point
from data_engine.evaluation.encoded_once import encoded_once
from data_engine.evaluation.ground_truth import AnnotatedImage, GroundTruth
from data_engine.masks import rle
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.image_masks import ImageMasks
from data_engine.masks.settings import MaskSettings
from data_engine.sam.predictor import SamPredictor
from data_engine.sam.segmenter import Embeddings, SamSegmenter

logger = logging.getLogger(__name__)

_UNUSABLE_AT_FIRST = 50
_SAID = 10  # on the console; the report has all

Progress = Callable[[int, int], None]  # images done, images in all


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """What to measure. Raises UsageError."""

    clicks: tuple[int, ...] = (1, 3, 5)
    boxes: bool = True
    baselines: bool = True
    automatic: MaskSettings | None = None  # None: no automatic generation
    limit: int | None = None  # images
    masks_per_image: int | None = None  # clicks and boxes go to so many objects of an image, drawn by the seed
    smallest_share: float = 0.001  # of the image: smaller objects get no click and no box
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(1 <= count <= 50 for count in self.clicks):
            raise UsageError(f"clicks are {self.clicks}: use numbers from 1 to 50")
        if not (self.clicks or self.boxes or self.baselines or self.automatic):
            raise UsageError("nothing to measure: leave clicks, boxes, baselines or automatic generation on")


@dataclass(slots=True)
class Measured:
    """What came out, object by object: N objects that were asked for, in the order of the images."""

    area: np.ndarray  # N pixels
    share: np.ndarray  # N, of the image
    clicks: dict[int, Answers] = field(default_factory=dict)
    boxes: Answers | None = None
    baselines: dict[str, BaselineAnswers] = field(default_factory=dict)
    average_recall: dict[str, dict[str, float | None]] | None = None
    images: int = 0
    objects: int = 0  # all of the ground truth, asked for or not
    generated: int = 0  # masks of automatic generation
    passed_over: list[str] = field(default_factory=list)  # images that could not be used, and why
    seconds: dict[str, float] = field(default_factory=dict)


def measure(
    segmenter: SamSegmenter,
    truth: GroundTruth,
    settings: EvaluationSettings,
    progress: Progress = lambda done, total: None,
) -> Measured:
    """Images that cannot be used, or whose outlines cannot, are passed over.

    Raises SourceError where there is nothing to measure, UsageError for a package that is missing.
    """
    run = _Run(segmenter, settings)
    total = len(truth.entries[: settings.limit])
    progress(0, total)
    with run.clock("total"):
        for done, found in enumerate(truth.read(settings.limit), 1):
            if isinstance(found, SourceError):
                run.pass_over(found)
            else:
                run.add(found)
            progress(done, total)
        return run.result(truth.source)


class _Run:
    def __init__(self, segmenter: SamSegmenter, settings: EvaluationSettings) -> None:
        self._segmenter = segmenter
        self._settings = settings
        self._predictor = SamPredictor(segmenter)
        self._recall = AverageRecall()
        self._areas: list[np.ndarray] = []
        self._shares: list[np.ndarray] = []
        self._clicks: dict[int, list[Answers]] = defaultdict(list)
        self._boxes: list[Answers] = []
        self._baselines: dict[str, list[BaselineAnswers]] = defaultdict(list)
        self._measured = Measured(np.empty(0), np.empty(0))

    def add(self, image: AnnotatedImage) -> None:
        self._measured.images += 1
        self._measured.objects += len(image.masks)
        asked = self._asked(image)
        areas = np.array([runs.area() for runs in asked], np.int64)
        self._areas.append(areas)
        self._shares.append(areas / np.prod(image.pixels.shape[:2]))
        settings = self._settings
        if settings.automatic or ((settings.clicks or settings.boxes) and asked):
            with self.clock("encode"):
                self._predictor.set_image(image.pixels)
        if asked and settings.clicks:
            with self.clock("clicks"):
                for count, answers in click_answers(self._predictor, asked, settings.clicks).items():
                    self._clicks[count].append(answers)
        if asked and settings.boxes:
            with self.clock("boxes"):
                self._boxes.append(box_answers(self._predictor, asked))
        if asked and settings.baselines:
            with self.clock("baselines"):
                self._ask_baselines(image.pixels, asked)
        if settings.automatic:
            with self.clock("automatic"):
                found = self._generate(image, settings.automatic)
            with self.clock("average recall"):
                truths = image.masks, image.crowds
                self._recall.add(found.height, found.width, *truths, found.counts, found.predicted_iou)

    def pass_over(self, error: SourceError) -> None:
        """Raises it where the first so many all are such: the data are not what they were taken for."""
        passed_over = self._measured.passed_over
        passed_over.append(str(error))
        if not self._measured.images and len(passed_over) == _UNUSABLE_AT_FIRST:
            raise SourceError(f"the first {_UNUSABLE_AT_FIRST} images cannot be measured on, the last since {error}")
        if len(passed_over) <= _SAID:
            logger.warning("passed over: %s", error)

    def result(self, source: str) -> Measured:
        measured = self._measured
        if measured.passed_over and not measured.images:
            raise SourceError(f"{source}: no image can be measured on, the last since {measured.passed_over[-1]}")
        if not sum(map(len, self._areas)) and not self._settings.automatic:
            raise SourceError(
                f"{source}: no object covers {self._settings.smallest_share:.2%} of its image; lower --smallest-share"
            )
        measured.area, measured.share = np.concatenate(self._areas), np.concatenate(self._shares)
        measured.clicks = {count: Answers.concatenate(parts) for count, parts in sorted(self._clicks.items())}
        measured.boxes = Answers.concatenate(self._boxes) if self._boxes else None
        measured.baselines = {
            name: BaselineAnswers(
                np.concatenate([part.iou for part in parts]), np.concatenate([p.share for p in parts])
            )
            for name, parts in self._baselines.items()
        }
        if self._settings.automatic:
            measured.average_recall = self._recall.result()
        return measured

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = self._measured.seconds
            spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - start

    def _asked(self, image: AnnotatedImage) -> list[RLEMask]:
        """The objects that are clicked on: large enough, and drawn by seed and image id alone."""
        pixels = image.pixels.shape[0] * image.pixels.shape[1]
        asked = [runs for runs in image.masks if runs.area() >= self._settings.smallest_share * pixels]
        count = self._settings.masks_per_image
        if count is None or len(asked) <= count:
            return asked
        rng = np.random.default_rng([self._settings.seed, zlib.crc32(image.image_id.encode())])
        return [asked[i] for i in np.sort(rng.choice(len(asked), count, replace=False))]

    def _ask_baselines(self, pixels: np.ndarray, asked: list[RLEMask]) -> None:
        clicks = np.array([deepest_point(rle.decode(runs)) for runs in asked])
        self._baselines["felzenszwalb"].append(felzenszwalb_answers(pixels, asked, clicks))
        self._baselines["flood_fill"].append(flood_answers(pixels, asked, clicks))

    def _generate(self, image: AnnotatedImage, settings: MaskSettings) -> ImageMasks:
        known = self._segmenter.prepare(image.pixels)
        segmenter = encoded_once(self._segmenter, known, Embeddings(self._predictor.get_image_embedding()))
        generator = MaskGenerator(segmenter, settings)
        found = generator.run(generator.prepare(image.pixels))
        self._measured.generated += len(found)
        return found
