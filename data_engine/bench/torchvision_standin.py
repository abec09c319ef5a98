"""The four functions of torchvision that segment-anything calls, for machines without torchvision.

Each does what torchvision documents: `resize` of a PIL image is Pillow's bilinear filter; `batched_nms`, which
segment-anything only calls with all boxes in one category, is greedy suppression that keeps the order of equal scores.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR)


def to_pil_image(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image))


def box_area(boxes: Tensor) -> Tensor:
    """Nx4 (x0, y0, x1, y1) -> N"""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that stay, best first. idxs, the categories, must all be 0."""
    if idxs.any():
        raise NotImplementedError("this stand-in for torchvision suppresses within one category only")
    order = scores.cpu().sort(descending=True, stable=True).indices
    sorted_boxes = boxes.cpu()[order].float()
    areas = box_area(sorted_boxes)
    alive = torch.ones(len(order), dtype=torch.bool)
    kept = []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        rest = sorted_boxes[i + 1 :]
        sides = torch.minimum(sorted_boxes[i, 2:], rest[:, 2:]) - torch.maximum(sorted_boxes[i, :2], rest[:, :2])
        shared = sides.clamp(min=0).prod(1)
        iou = shared / (areas[i] + areas[i + 1 :] - shared)
        alive[i + 1 :] &= ~(iou.double() > iou_threshold)  # no overlap of empty boxes: 0/0 is not above it
    return order[kept].to(boxes.device)


@contextmanager
def torchvision_or_standin() -> Iterator[str]:
    """Inside, segment-anything can be imported. Yields torchvision's version, or "stand-in".

    No longer than inside: what else asks for torchvision must find that there is none.
    """
    try:
        version = importlib.import_module("torchvision").__version__
    except Exception:  # absent, or built for another torch, which raises what it likes
        version = None
    if version is not None:
        yield version
        return
    members: dict[str, dict[str, object]] = {
        "torchvision": {},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"resize": resize, "to_pil_image": to_pil_image},
    }
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
    for name in before:
        del sys.modules[name]
    for name, functions in members.items():
        module = types.ModuleType(name)
        vars(module).update(functions)
        sys.modules[name] = module
    try:
        yield "stand-in"
    finally:
        for name in members:
            del sys.modules[name]
        sys.modules.update(before)
