"""Which of several overlapping masks stays: greedy non-maximum suppression on boxes."""

from __future__ import annotations

import numpy as np


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
