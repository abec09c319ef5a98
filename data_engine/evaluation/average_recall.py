"""Average recall of mask proposals, by pycocotools' evaluator: classes ignored, IoU from 0.5 to 0.95, by size."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rlemasklib import RLEMask

from data_engine.evaluation.scores import SIZES
from data_engine.masks.rle import counts_string

PROPOSALS = (100, 1000)
_ONE_CATEGORY = 1


class AverageRecall:
    """Takes image after image, then says which part of the objects the best proposals of each image cover."""

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._truths: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def add(
        self,
        height: int,
        width: int,
        truths: Sequence[RLEMask],
        crowds: Sequence[RLEMask],
        found: Sequence[str],
        scores: np.ndarray,
    ) -> None:
        """An image's objects, its crowds (matched or not, they do not count), and the proposals' counts and scores."""
        image = len(self._images) + 1
        self._images.append({"id": image, "height": height, "width": width})
        for crowd, runs in [*((0, runs) for runs in truths), *((1, runs) for runs in crowds)]:
            x, y, w, h = (float(value) for value in runs.bbox())
            self._truths.append(
                {
                    "id": len(self._truths) + 1,
                    "image_id": image,
                    "category_id": _ONE_CATEGORY,
                    "iscrowd": crowd,
                    "area": float(runs.area()),
                    "bbox": [x, y, w, h],
                    "segmentation": {"size": [height, width], "counts": counts_string(runs)},
                }
            )
        for counts, score in zip(found, scores, strict=True):
            self._found.append(
                {
                    "image_id": image,
                    "category_id": _ONE_CATEGORY,
                    "segmentation": {"size": [height, width], "counts": counts},
                    "score": float(score),
                }
            )

    def result(self) -> dict[str, dict[str, float | None]]:
        """ "AR@100" and "AR@1000" -> recall of all, small, medium and large objects; None where there are none."""
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
            recall = self._recall()
        names = ("all", *SIZES)
        result: dict[str, dict[str, float | None]] = {}
        for m, proposals in enumerate(PROPOSALS):
            by_size = {}
            for a, name in enumerate(names):
                known = recall[:, :, a, m][recall[:, :, a, m] >= 0]
                by_size[name] = float(known.mean()) if len(known) else None
            result[f"AR@{proposals}"] = by_size
        return result

    def _recall(self) -> np.ndarray:
        """Thresholds x classes x sizes x proposals; -1 where there is no object."""
        truths = COCO()
        truths.dataset = {
            "images": self._images,
            "annotations": self._truths,
            "categories": [{"id": _ONE_CATEGORY, "name": "object"}],
            "info": {},
        }
        truths.createIndex()
        # loadRes refuses an empty list of results.
        found = truths.loadRes(self._found) if self._found else _nothing_found(truths)
        evaluator = COCOeval(truths, found, "segm")
        evaluator.params.useCats = 0
        evaluator.params.maxDets = list(PROPOSALS)
        evaluator.params.areaRngLbl = ["all", *SIZES]
        evaluator.params.areaRng = [[0, 1e10], *([low, min(high, 1e10)] for low, high in SIZES.values())]
        evaluator.evaluate()
        evaluator.accumulate()
        return evaluator.eval["recall"]


def _nothing_found(truths: COCO) -> COCO:
    found = COCO()
    found.dataset = {**truths.dataset, "annotations": []}
    found.createIndex()
    return found
