"""Masks as polygons: exact before they are simplified, within the tolerance after, and what that loses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dataset import small_dataset
from dataset.exported import build_blobs, export
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco
from scipy import ndimage

from data_engine.dataset.export.coco import CocoPolygons
from data_engine.dataset.export.polygon_loss import PolygonLoss, polygon_iou
from data_engine.dataset.export.polygons import mask_polygons, outlines, simplify
from data_engine.dataset.export.yolo import joined_by_seams
from data_engine.dataset.reader import MaskDataset

TOUCHING = np.ones((3, 3))
masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


def smooth_masks(count=30):
    rng = np.random.default_rng(1)
    for _ in range(count):
        noise = ndimage.gaussian_filter(rng.standard_normal((60, 80)), 4)
        yield noise > np.quantile(noise, 0.7)


def row_of(mask):
    """A row of the masks table."""
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    x, y, w, h = coco.toBbox(rle).astype(int).tolist()
    return {
        "height": mask.shape[0],
        "width": mask.shape[1],
        "counts": rle["counts"].decode(),
        "area": int(mask.sum()),
        **{"bbox_x": x, "bbox_y": y, "bbox_w": w, "bbox_h": h},
    }


def drawn(rings, shape):
    """Even-odd over all rings together, by pycocotools."""
    picture = np.zeros(shape, np.uint8)
    for ring in rings:
        picture ^= coco.decode(coco.frPyObjects([ring.reshape(-1).tolist()], *shape)[0])
    return picture.astype(bool)


@given(masks)
def test_outlines_enclose_exactly_the_mask(mask):
    outer, holes = outlines(mask)
    np.testing.assert_array_equal(drawn([*outer, *holes], mask.shape), mask)


@given(masks)
def test_there_is_an_outline_a_piece_and_a_hole(mask):
    """Connectivity 8 for the mask, and so 4 for what is not the mask."""
    outer, holes = outlines(mask)
    assert len(outer) == ndimage.label(mask, TOUCHING)[1]
    assert len(holes) == ndimage.label(np.pad(~mask, 1, constant_values=True))[1] - 1


@given(masks)
def test_outlines_turn_at_every_point(mask):
    outer, holes = outlines(mask)
    for ring in [*outer, *holes]:
        steps = np.roll(ring, -1, 0) - ring
        assert ((steps == 0).sum(1) == 1).all()  # along one axis, by something
        assert ((steps[:, 0] == 0) != (np.roll(steps, -1, 0)[:, 0] == 0)).all()  # and along the other next


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 3.0])
def test_simplified_outlines_stay_within_the_tolerance(tolerance):
    for mask in smooth_masks():
        for ring in outlines(mask)[0]:
            simple = simplify(ring, tolerance)
            assert len(simple) <= len(ring)
            closed = np.concatenate([simple, simple[:1]])
            starts, ends = closed[:-1], closed[1:]
            for point in ring:
                line = ends - starts
                along = np.clip(((point - starts) * line).sum(1) / np.maximum((line**2).sum(1), 1e-9), 0, 1)
                assert np.hypot(*(point - starts - along[:, None] * line).T).min() <= tolerance + 1e-9


def test_without_a_tolerance_only_holes_are_lost():
    for mask in smooth_masks():
        rings = mask_polygons(row_of(mask), 0).rings
        np.testing.assert_array_equal(drawn(rings, mask.shape), ndimage.binary_fill_holes(mask))


def test_the_loss_is_the_iou_with_the_mask():
    for mask in smooth_masks(10):
        rings = mask_polygons(row_of(mask), 1.5).rings
        picture = drawn(rings, mask.shape)
        expected = (picture & mask).sum() / (picture | mask).sum()
        assert polygon_iou(row_of(mask), [ring.reshape(-1).tolist() for ring in rings]) == pytest.approx(expected)


def test_seams_between_pieces_cover_no_pixel():
    for mask in smooth_masks():
        rings = mask_polygons(row_of(mask), 0).rings
        joined = joined_by_seams(rings)
        np.testing.assert_array_equal(drawn([joined], mask.shape), drawn(rings, mask.shape))
        assert len(joined) == sum(map(len, rings)) + 2 * (len(rings) - 1)


def test_more_pieces_than_a_byte_counts():
    mask = np.zeros((60, 60), bool)
    mask[::2, ::2] = True
    rings = [ring.reshape(-1).tolist() for ring in mask_polygons(row_of(mask), 0).rings]
    assert len(rings) == 900
    assert polygon_iou(row_of(mask), rings) == 1


def test_a_speck_that_the_tolerance_swallows_is_counted():
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    mask[0, 0] = True
    found = mask_polygons(row_of(mask), 2)
    assert (len(found.rings), found.dropped) == (1, 1)


@pytest.mark.parametrize("pixels", [np.s_[7:8, 9:10], np.s_[4:5, :], np.s_[:, 19:], np.s_[0:2, 0:2]])
def test_a_mask_that_the_tolerance_swallows_keeps_its_outline(pixels):
    """A wire of a pixel's width over the whole image is no speck."""
    mask = np.zeros((20, 20), bool)
    mask[pixels] = True
    found = mask_polygons(row_of(mask), 2)
    assert (len(found.rings), found.dropped) == (1, 0)
    assert polygon_iou(row_of(mask), [found.rings[0].reshape(-1).tolist()]) == 1


def test_of_specks_alone_the_largest_stays():
    mask = np.zeros((20, 20), bool)
    mask[0, 0] = mask[5, 5:9] = mask[9, 9:11] = True
    found = mask_polygons(row_of(mask), 2)
    assert (len(found.rings), found.dropped) == (1, 2)
    assert found.rings[0].min(0).tolist() == [5, 5]


@given(st.lists(st.lists(st.floats(0, 1), max_size=20), max_size=4))
def test_losses_of_pieces_add_up(parts):
    losses = []
    for part in parts:
        loss = PolygonLoss()
        for iou in part:
            size = 1000
            row = {"height": 1, "width": size, "area": size, **dict.fromkeys(("bbox_x", "bbox_y"), 0)}
            row["counts"] = coco.encode(np.ones((1, size), np.uint8, order="F"))["counts"].decode()
            end = max(round(iou * size), 1)
            loss.add(row, [[0, 0, end, 0, end, 1, 0, 1]], holes=0, dropped=0)
        losses.append(json.loads(json.dumps(loss.to_dict())))
    summary = PolygonLoss.sum(losses).summary()
    ious = sorted(max(round(iou * 1000), 1) / 1000 for part in parts for iou in part)
    assert summary["masks"] == len(ious)
    if ious:
        assert summary["iou_mean"] == pytest.approx(np.mean(ious), abs=1e-4)
        assert summary["iou_min"] == pytest.approx(ious[0], abs=1e-4)
        for share, value in summary["iou_quantiles"].items():
            assert value == pytest.approx(np.quantile(ious, float(share), method="inverted_cdf"), abs=1.1e-3)


def test_the_report_lies_beside_the_export(tmp_path, monkeypatch):
    dataset = build_blobs(tmp_path / "masks", monkeypatch)
    export(dataset, tmp_path / "out", CocoPolygons(images_per_file=3, tolerance=1.0))
    report = json.loads((tmp_path / "out/loss.json").read_text())
    ious, holes = [], 0
    for image in dataset:
        for i, row in enumerate(image.masks.to_pylist()):
            found = mask_polygons(row, 1.0)
            ious.append(polygon_iou(row, [ring.reshape(-1).tolist() for ring in found.rings]))
            holes += len(outlines(image.mask(i))[1])
    assert report["masks"] == len(ious) == dataset.totals.masks
    assert report["iou_mean"] == pytest.approx(np.mean(ious), abs=1e-5)
    assert report["share_below_0.9"] == pytest.approx(np.mean(np.array(ious) < 0.9), abs=1e-5)
    assert report["holes_dropped"] == holes > 0


def test_an_image_of_which_no_polygon_is_left_leaves_a_readable_file(tmp_path, monkeypatch):
    """Whichever image of a file it is: the first one, one in the middle, the last one."""
    sizes = iter([0, 0, 9, 9, 9, 9] * 10)  # images of two and of four masks follow one another

    def square(rng):
        size = next(sizes)
        mask = np.zeros((small_dataset.HEIGHT, small_dataset.WIDTH), np.uint8, order="F")
        mask[5 : 5 + size, 7 : 7 + size] = 1
        return mask

    monkeypatch.setattr(small_dataset, "random_mask", square)
    small_dataset.build(tmp_path / "masks")
    export(MaskDataset(tmp_path / "masks"), tmp_path / "out", CocoPolygons(images_per_file=3))
    for file in sorted((tmp_path / "out").glob("instances_*.json")):
        read = json.loads(file.read_text())
        drawn_on = {annotation["image_id"] for annotation in read["annotations"]}
        assert {image["id"] for image in read["images"]} > drawn_on
