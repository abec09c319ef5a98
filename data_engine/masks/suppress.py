"""Which of several overlapping masks stays: greedy non-maximum suppression, on boxes or on the masks themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rlemasklib import RLEMask


def box_nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Indices of the boxes that stay, best first.

    boxes Nx4 (x0, y0, x1, y1), scores N. A box goes when its IoU with a better one that stayed exceeds the threshold.
    Equal scores keep their order. Arithmetic is torchvision's CPU kernel's: float32 boxes and IoU, compared as double.
    Time O(N x kept), memory O(N): no N x N matrix.
    """
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    order = np.argsort(-np.asarray(scores), kind="stable")
    x0, y0, x1, y1 = boxes[order].T
    areas = (x1 - x0) * (y1 - y0)
    remaining = np.arange(len(order))
    kept = []
    while len(remaining):
        best, remaining = remaining[0], remaining[1:]
        kept.append(best)
        overlap_w = np.minimum(x1[best], x1[remaining]) - np.maximum(x0[best], x0[remaining])
        overlap_h = np.minimum(y1[best], y1[remaining]) - np.maximum(y0[best], y0[remaining])
        inter = overlap_w.clip(min=0) * overlap_h.clip(min=0)
        with np.errstate(invalid="ignore"):  # two empty boxes: 0/0, which suppresses nothing
            iou = inter / (areas[best] + areas[remaining] - inter)
        remaining = remaining[~(iou.astype(np.float64) > iou_threshold)]
    return order[np.array(kept, dtype=np.int64)]


def mask_nms(
    masks: Sequence[RLEMask], boxes: np.ndarray, areas: np.ndarray, scores: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Indices of the masks that stay, best first: `box_nms` by the IoU of the masks.

    masks N of one image, boxes Nx4 int (x0, y0, x1, y1) with x1, y1 the last pixels inside, areas N int pixels,
    scores N. IoUs are exact quotients of pixels; two empty masks do not overlap. Runs are compared only where boxes
    and areas leave it open.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    boxes, areas = np.asarray(boxes, np.int64).reshape(-1, 4)[order], np.asarray(areas, np.int64)[order]
    remaining = np.arange(len(order))
    kept = []
    while len(remaining):
        best, remaining = remaining[0], remaining[1:]
        kept.append(best)
        bound = _most_iou(boxes[best], areas[best], boxes[remaining], areas[remaining])
        rivals = np.flatnonzero(bound > iou_threshold)
        iou = RLEMask.iou_matrix([masks[order[best]]], [masks[i] for i in order[remaining[rivals]]])[0]
        remaining = np.delete(remaining, rivals[iou > iou_threshold])
    return order[np.array(kept, dtype=np.int64)]


def _most_iou(box: np.ndarray, area: np.ndarray, boxes: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """The largest IoU that a mask can have with each of others: the smallest of both masks and of what their boxes
    share lies within the other. As a quotient it is rounded like the IoU itself, so never below it."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + 1
    inter = np.minimum(np.minimum(area, areas), sides.clip(min=0).prod(1))
    return inter / np.maximum(area + areas - inter, 1)
