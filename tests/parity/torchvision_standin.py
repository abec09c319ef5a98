"""The four torchvision functions that segment-anything imports, for machines that have no torchvision.

There is no CPU build of torchvision where these tests run. Each function restates torchvision's own semantics:
`resize` on a PIL image is `Image.resize` with bilinear filtering; `batched_nms` with one category is plain NMS
(torchvision/csrc/ops/cpu/nms_kernel.cpp).
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def to_pil_image(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image))


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, categories: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    assert not categories.any(), "the stand-in knows one category only"
    areas = box_area(boxes)
    suppressed = torch.zeros(len(boxes), dtype=torch.bool)
    keep = []
    for i in torch.sort(scores, stable=True, descending=True).indices.tolist():
        if suppressed[i]:
            continue
        keep.append(i)
        top_left = torch.maximum(boxes[i, :2], boxes[:, :2])
        sides = (torch.minimum(boxes[i, 2:], boxes[:, 2:]) - top_left).clamp(min=0)
        inter = sides[:, 0] * sides[:, 1]
        suppressed |= (inter / (areas[i] + areas - inter)).double() > iou_threshold
    return torch.tensor(keep, dtype=torch.long)


@contextmanager
def installed() -> Iterator[None]:
    """Has the stand-in under torchvision's names inside, unless the real one is there.

    Not for longer: what else asks for torchvision (transformers does) must find that there is none.
    """
    if importlib.util.find_spec("torchvision"):
        yield
        return
    modules: dict[str, dict[str, object]] = {
        "torchvision": {},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"resize": resize, "to_pil_image": to_pil_image},
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        vars(module).update(members)
        sys.modules[name] = module
    yield
    for name in modules:
        del sys.modules[name]
