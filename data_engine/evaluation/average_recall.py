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
_AREAS = {"all": (0, 1e10), **SIZES}
_THRESHOLDS = 10  # IoU from 0.50 to 0.95: COCOeval's
_OF_THE_IMAGE = {"image_id": 1, "category_id": 1}


class AverageRecall:
    """Takes image after image, then says which part of the objects the best proposals of each image cover.

    Recall is a sum over images, so each is evaluated when it comes, and only the counts are held.
    """

    def __init__(self) -> None:
        self._objects = np.zeros(len(_AREAS), np.int64)
        self._found = np.zeros((_THRESHOLDS, len(_AREAS), len(PROPOSALS)), np.int64)

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
        size = [height, width]
        objects = [*((0, runs) for runs in truths), *((1, runs) for runs in crowds)]
        annotations = [_annotation(number, crowd, runs, size) for number, (crowd, runs) in enumerate(objects, 1)]
        proposals = [
            {**_OF_THE_IMAGE, "segmentation": {"size": size, "counts": counts}, "score": float(score)}
            for counts, score in zip(found, scores, strict=True)
        ]
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
            evaluated = _evaluated(height, width, annotations, proposals)
        for a, by_area in enumerate(evaluated):
            if by_area is None:  # neither objects nor proposals
                continue
            hits = (by_area["dtMatches"] != 0) & ~by_area["dtIgnore"]  # thresholds x proposals, the best first
            self._objects[a] += (by_area["gtIgnore"] == 0).sum()
            for m, most in enumerate(PROPOSALS):
                self._found[:, a, m] += hits[:, :most].sum(1)

    def result(self) -> dict[str, dict[str, float | None]]:
        """ "AR@100" and "AR@1000" -> recall of all, small, medium and large objects; None where there are none."""
        return {
            f"AR@{proposals}": {
                name: float((self._found[:, a, m] / objects).mean()) if objects else None
                for a, (name, objects) in enumerate(zip(_AREAS, self._objects.tolist(), strict=True))
            }
            for m, proposals in enumerate(PROPOSALS)
        }


def _annotation(number: int, crowd: int, runs: RLEMask, size: list[int]) -> dict[str, Any]:
    return {
        **_OF_THE_IMAGE,
        "id": number,
        "iscrowd": crowd,
        "area": float(runs.area()),
        "bbox": [float(value) for value in runs.bbox()],
        "segmentation": {"size": size, "counts": counts_string(runs)},
    }


def _evaluated(height: int, width: int, annotations: list[Any], proposals: list[Any]) -> list[dict[str, Any] | None]:
    """What COCOeval finds in one image, for objects of each range of areas."""
    truths = COCO()
    truths.dataset = {
        "images": [{"id": _OF_THE_IMAGE["image_id"], "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": _OF_THE_IMAGE["category_id"], "name": "object"}],
        "info": {},
    }
    truths.createIndex()
    # loadRes refuses an empty list of results.
    found = truths.loadRes(proposals) if proposals else _nothing_found(truths)
    evaluator = COCOeval(truths, found, "segm")
    evaluator.params.useCats = 0
    evaluator.params.maxDets = list(PROPOSALS)
    evaluator.params.areaRngLbl = list(_AREAS)
    evaluator.params.areaRng = [[low, min(high, 1e10)] for low, high in _AREAS.values()]
    evaluator.evaluate()
    return evaluator.evalImgs


def _nothing_found(truths: COCO) -> COCO:
    found = COCO()
    found.dataset = {**truths.dataset, "annotations": []}
    found.createIndex()
    return found
