"""Pictures of a model's answers: one click on each mask, beside what was meant."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from data_engine.evaluation.clicks import first_click
from data_engine.masks import rle
from data_engine.sam.predictor import SamPredictor
from data_engine.sam.resize import scale_points
from data_engine.train.data.labelled import LabelledImage

_OPACITY = 0.55
_SIDE = 640  # of a panel, at most
_GAP = 8


def answers_picture(predictor: SamPredictor, image: LabelledImage) -> Image.Image:
    """Left the masks of the image that is set in the predictor, right the most promising answer to a click on each."""
    truths = [rle.decode(runs) for runs in image.masks]
    clicks = np.array([first_click(truth)[:2] for truth in truths])
    answers = [_answer(predictor, image.image.shape[:2], click) for click in clicks]
    panels = [_panel(image.image, masks, clicks) for masks in (truths, answers)]
    width, height = panels[0].size
    picture = Image.new("RGB", (2 * width + _GAP, height), "white")
    for column, panel in enumerate(panels):
        picture.paste(panel, (column * (width + _GAP), 0))
    return picture


def _answer(predictor: SamPredictor, shape: tuple[int, ...], click: np.ndarray) -> np.ndarray:
    point = torch.as_tensor(scale_points(click, (shape[0], shape[1]), predictor.segmenter.image_size)).float()
    masks, predicted, _ = predictor.predict_torch(point[None, None], torch.ones(1, 1, dtype=torch.int))
    return masks[0, predicted[0].argmax()].cpu().numpy()


def _panel(pixels: np.ndarray, masks: Sequence[np.ndarray], clicks: np.ndarray) -> Image.Image:
    """Large masks are drawn first, each mask in a colour of its own, and every click as a dot."""
    canvas = pixels.astype(np.float32)
    for index in sorted(range(len(masks)), key=lambda index: -int(masks[index].sum())):
        hue = (index * 0.61803398875) % 1  # steps of the golden ratio keep neighbours apart
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue, 0.8, 1.0), np.float32)
        canvas[masks[index]] = (1 - _OPACITY) * canvas[masks[index]] + _OPACITY * colour
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    scale = min(_SIDE / picture.width, _SIDE / picture.height)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    draw = ImageDraw.Draw(picture)
    for x, y in (clicks + 0.5) * scale:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="white", outline="black")
    return picture
