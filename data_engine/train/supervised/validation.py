"""Held-out images: how well clicks are answered, as `data-engine evaluate` measures it, and pictures of the answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data_engine.errors import SourceError
from data_engine.evaluation.answers import Answers, click_answers
from data_engine.sam.model import Sam, Uninitialised
from data_engine.sam.predictor import SamPredictor
from data_engine.sam.segmenter import SamSegmenter
from data_engine.stop_signals import Stopped
from data_engine.train.data.labelled import LabelledImage, TrainingData, decoded
from data_engine.train.supervised.log_files import writing
from data_engine.train.supervised.lora import merged_state
from data_engine.train.supervised.pictures import answers_picture
from data_engine.train.supervised.settings import RunSettings

if TYPE_CHECKING:
    from PIL import Image

SMALLEST_SHARE = 0.001  # of the image: smaller masks get no click, as in `data-engine evaluate`


class Validation:
    def __init__(self, data: TrainingData, settings: RunSettings, device: torch.device, output: Path) -> None:
        self._data = data
        self._settings = settings
        self._device = device
        self._output = output

    def measure(
        self, model: Sam, step: int, asked_to_end: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, Any], dict[str, Image.Image]]:
        """Mean IoU over masks by number of clicks, and pictures by image; both are of `model` as it is now.

        Raises SourceError where there is nothing to measure, Stopped between two images where it is asked to end.
        """
        predictor = SamPredictor(SamSegmenter(plain_model(model), self._device, "reference"))
        found: dict[int, list[Answers]] = {count: [] for count in self._settings.validation_clicks}
        pictures: dict[str, Image.Image] = {}
        images = 0
        for image in self._images():
            if asked_to_end():
                raise Stopped
            predictor.set_image(image.image)
            images += 1
            for count, answers in click_answers(predictor, image.masks, self._settings.validation_clicks).items():
                found[count].append(answers)
            if len(pictures) < self._settings.pictures:
                pictures[_file_name(len(pictures), image.image_id)] = answers_picture(predictor, image)
        if not images:
            raise SourceError(f"data.validation has no mask of {SMALLEST_SHARE:.1%} of its image: nothing to measure")
        self._write(pictures, step)
        scores = {str(count): _scores(Answers.concatenate(parts)) for count, parts in sorted(found.items())}
        masks = sum(len(part.single) for part in next(iter(found.values())))
        return {"step": step, "images": images, "masks": masks, "clicks": scores}, pictures

    def _images(self) -> Iterator[LabelledImage]:
        """The same ones in the same order every time, with the masks that are asked for."""
        settings = self._settings
        with closing(decoded(self._data.undecoded(0, seed=0), settings.loader_threads)) as images:
            for image in islice(images, settings.validation_images):
                least = SMALLEST_SHARE * image.image.shape[0] * image.image.shape[1]
                masks = [mask for mask in image.masks if mask.area() >= least]
                if masks:
                    yield LabelledImage(image.image_id, image.image, masks[: settings.validation_masks_per_image])

    def _write(self, pictures: dict[str, Image.Image], step: int) -> None:
        folder = self._output / "pictures" / f"step-{step:06d}"
        with writing(folder):
            if pictures:
                folder.mkdir(parents=True, exist_ok=True)
            for name, picture in pictures.items():
                picture.save(folder / f"{name}.jpg", quality=90)


def plain_model(model: Sam) -> Sam:
    """A copy without adapters, hooks and gradients."""
    with Uninitialised():
        copy = Sam(model.architecture)
    copy.load_state_dict(merged_state(model))
    return copy


def _scores(answers: Answers) -> dict[str, float]:
    return {
        "best_of_three": round(float(answers.oracle.mean()), 4),
        "highest_predicted_iou": round(float(answers.chosen.mean()), 4),
        "single_mask": round(float(answers.single.mean()), 4),
    }


def _file_name(number: int, image_id: str) -> str:
    stem = image_id.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return f"{number:02d}-" + (re.sub(r"[^\w.-]+", "_", stem)[:80] or "image")
