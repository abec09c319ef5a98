"""Edits of known people, without a model."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from data_engine.corrections.edits import Edit, EditSession
from data_engine.dataset.reader import MaskDataset

MONDAY = datetime(2026, 3, 2, 9, 0, tzinfo=timezone.utc)


def edit(action: str, number: int, *, image_id: str = "a.jpg", n_masks: int = 3, who: str = "Ada", **more: Any) -> Edit:
    """The edit that is made `number` seconds after the first, with that number as its id."""
    at = MONDAY + timedelta(seconds=number)
    given = {"edit_id": str(number), "fingerprint": "f", "code_version": "0"}
    return Edit(image_id=image_id, action=action, n_masks=n_masks, who=who, edited_at=at, **{**given, **more})


def mask_facts(mask: np.ndarray) -> dict[str, Any]:
    """Columns of an edit that made this mask, HxW bool, with a click and a click beside it."""
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    x, y, w, h = coco.toBbox(rle).astype(int).tolist()
    return {
        "height": mask.shape[0],
        "width": mask.shape[1],
        "bbox_x": x,
        "bbox_y": y,
        "bbox_w": w,
        "bbox_h": h,
        "area": int(coco.area(rle)),
        "counts": rle["counts"].decode(),
        "point_x": [1.0, 2.0],
        "point_y": [3.0, 4.0],
        "point_label": [0, 1],
        "predicted_iou": 0.25,
        "stability_score": 0.5,
        "answer": 0,
        "model": "starter",
        "model_sha256": "0" * 64,
    }


class Person:
    """Somebody who corrects a dataset on disk."""

    def __init__(self, root: Path | str, who: str = "Ada", after: int = 0) -> None:
        """after: seconds from the first edit of all."""
        self.dataset = MaskDataset(str(root))
        self.who = who
        self._session = EditSession(str(root))
        self._number = after

    def does(self, action: str, image_id: str, **more: Any) -> Edit:
        self._number += 1
        row = self.dataset[image_id].row
        given = {"image_id": image_id, "n_masks": row["n_masks"], "who": self.who, "image_sha256": row["sha256"]}
        fingerprint = self.dataset.plan["fingerprint"]
        return self._session.add(edit(action, self._number, **{"fingerprint": fingerprint, **given, **more}))
