"""The checker of parity must see what was planted."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

from data_engine.bench.contender import Records
from data_engine.bench.parity import InOrder, Margins, Matched, in_order, matched
from data_engine.masks import rle
from data_engine.masks.settings import MaskSettings

HEIGHT, WIDTH = 200, 300
SETTINGS = MaskSettings()


def record(x: int, y: int, w: int, h: int, iou: float = 0.95, stability: float = 0.99) -> dict:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    return {
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle.counts_string(rle.encode(mask))},
        "bbox": [x, y, w - 1, h - 1],
        "predicted_iou": iou,
        "stability_score": stability,
        "point_coords": [[x + w / 2, y + h / 2]],
        "crop_box": [0, 0, WIDTH, HEIGHT],
    }


@pytest.fixture
def records() -> Records:
    return [record(10 + 60 * i, 20, 40, 50 + 10 * i) for i in range(4)]


def orderly(ours: Records, theirs: Records) -> InOrder:
    counts = InOrder()
    in_order(ours, theirs, counts)
    return counts


def loose(ours: Records, theirs: Records, settings: MaskSettings = SETTINGS) -> Matched:
    counts = Matched()
    matched(ours, theirs, settings, Margins.of("reference"), counts)
    return counts


def test_the_same_masks(records: Records) -> None:
    assert orderly(records, deepcopy(records)).perfect
    counts = loose(records, deepcopy(records))
    assert counts.found == {0.9: 4, 0.95: 4, 0.99: 4}
    assert (counts.lost, counts.extra) == (0, 0)


def test_no_masks_at_all() -> None:
    assert orderly([], []).perfect
    assert loose([], []).as_dict()["masks"] == 0


def test_a_lost_mask(records: Records) -> None:
    assert not orderly(records[:-1], records).perfect
    counts = loose(records[:-1], records)
    assert (counts.lost, counts.extra, counts.unexplained) == (1, 0, 1)
    assert counts.as_dict()["recall_of_reference"]["0.9"] == 0.75
    assert counts.as_dict()["recall_of_ours"]["0.9"] == 1.0


def test_a_shifted_mask(records: Records) -> None:
    ours = [*records[:-1], record(190 + 1, 20, 40, 80)]
    shifted = orderly(ours, records)
    assert not shifted.perfect
    assert (shifted.equal_runs, shifted.displaced, shifted.different_pixels) == (3, 1, 160)
    counts = loose(ours, records)
    assert counts.found == {0.9: 4, 0.95: 4, 0.99: 3}


def test_a_mask_shifted_too_far_is_another(records: Records) -> None:
    counts = loose([*records[:-1], record(190 + 8, 20, 40, 80)], records)
    assert (counts.lost, counts.extra, counts.unexplained) == (1, 1, 0 if counts.linked else 2)


def test_one_pixel(records: Records) -> None:
    changed = deepcopy(records)
    changed[1]["segmentation"] = record(70, 20, 40, 61)["segmentation"]
    counts = orderly(changed, records)
    assert (counts.equal_runs, counts.different_pixels, counts.most_different_pixels) == (3, 40, 40)


def test_two_masks_changed_places(records: Records) -> None:
    counts = orderly([records[1], records[0], *records[2:]], records)
    assert counts.displaced == 2
    assert not counts.perfect


@pytest.mark.parametrize("scores", [{"iou": 0.8801}, {"stability": 0.9505}])
def test_a_lost_mask_near_a_threshold_is_explained(records: Records, scores: dict[str, float]) -> None:
    counts = loose(records, [*records, record(150, 150, 30, 30, **scores)])
    assert (counts.lost, counts.at_a_threshold, counts.unexplained) == (1, 1, 0)


def test_a_mask_that_only_another_lost_one_let_live_is_linked(records: Records) -> None:
    """There a mask at the threshold suppresses a worse one; here it fell, and the worse one stays."""
    best, worse = record(100, 120, 60, 60, iou=0.881), record(103, 120, 60, 60, iou=0.8)
    settings = MaskSettings(pred_iou_thresh=0.88)
    counts = loose([*records, worse], [*records, best], settings)
    assert (counts.lost + counts.extra, counts.unexplained) == (0, 0)  # they overlap by 0.9: the same mask
    worse = record(106, 120, 60, 60, iou=0.95)
    counts = loose([*records, worse], [*records, best], settings)
    assert (counts.lost, counts.extra) == (1, 1)
    assert (counts.at_a_threshold, counts.linked, counts.unexplained) == (1, 1, 0)


def test_of_two_overlapping_masks_with_the_same_score_either_may_stay(records: Records) -> None:
    counts = loose([*records, record(100, 120, 60, 60)], [*records, record(106, 120, 60, 60)])
    assert (counts.lost, counts.extra, counts.linked, counts.unexplained) == (1, 1, 2, 0)
    counts = loose([*records, record(100, 120, 60, 60)], [*records, record(106, 120, 60, 60, iou=1.02)])
    assert counts.unexplained == 2


def test_a_box_at_the_edge_of_what_a_crop_keeps(records: Records) -> None:
    lost = record(120, 100, 30, 30)
    lost["crop_box"] = [100, 60, 120, 120]
    assert loose(records, [*records, lost], MaskSettings(crop_n_layers=1)).at_a_threshold == 1
    lost["crop_box"] = [80, 60, 140, 120]
    assert loose(records, [*records, lost], MaskSettings(crop_n_layers=1)).unexplained == 1
