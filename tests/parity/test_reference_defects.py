"""Inputs on which segment-anything 1.0 fails or surprises, one test each, named by the issue of its repository.

Where it is cheap the reference's own failure is shown too, so that a test says what would be lost by following it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity.planted import PlantedSegmenter, picture, planted_reference
from parity.reference import SamAutomaticMaskGenerator, amg, assert_same_records
from pycocotools import mask as coco
from torch import Tensor

from data_engine.masks import rle
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.grid import CropWindow
from data_engine.masks.upsample import Upsampler
from data_engine.sam.segmenter import Decoded, Embeddings

NOTHING: dict[str, Any] = {"points_per_side": 4, "pred_iou_thresh": 2.0}


class UniformSegmenter(PlantedSegmenter):
    """Every click gives the same three logits everywhere."""

    def __init__(self, *levels: float) -> None:
        super().__init__()
        self.levels = torch.tensor(levels or (5.0, 5.0, 5.0))

    def decode(self, embeddings: Embeddings, view: int, *, points: Tensor, labels: Tensor, **_: object) -> Decoded:
        logits = self.levels[:, None, None].expand(len(points), 3, self.logits_size, self.logits_size)
        return Decoded(torch.ones(len(points), 3), lambda wanted: logits[wanted])


def generate(shape: tuple[int, int], **settings: Any) -> list[dict[str, Any]]:
    return MaskGenerator(PlantedSegmenter(), output_mode="coco_rle", **settings).generate(picture(*shape))


def generate_with_reference(shape: tuple[int, int], **settings: Any) -> list[dict[str, Any]]:
    return SamAutomaticMaskGenerator(planted_reference(), output_mode="coco_rle", **settings).generate(picture(*shape))


@pytest.mark.parametrize("layers", [1, 2])
def test_issues_614_703_no_mask_in_any_crop(layers: int) -> None:
    with pytest.raises(IndexError):
        generate_with_reference((120, 160), crop_n_layers=layers, **NOTHING)
    assert generate((120, 160), crop_n_layers=layers, **NOTHING) == []
    assert generate((120, 160), crop_n_layers=layers, min_mask_region_area=50, **NOTHING) == []


def test_issue_614_no_mask_without_crops_is_no_record() -> None:
    assert generate((120, 160), **NOTHING) == generate_with_reference((120, 160), **NOTHING) == []


def test_boxes_are_integers_also_after_a_batch_without_survivors() -> None:
    """A batch of clicks in which no mask survives turns all boxes of its crop into floats in the reference."""
    settings = {"points_per_side": 6, "points_per_batch": 1, "stability_score_thresh": 0.6}
    mine, yours = generate((200, 300), **settings), generate_with_reference((200, 300), **settings)
    assert_same_records(mine, yours)
    assert {type(number) for record in yours for number in record["bbox"]} == {float}
    assert {type(number) for record in mine for number in record["bbox"]} == {int}


def test_stability_of_rows_longer_than_16_bits() -> None:
    """The reference sums each row of a mask in int16: beyond 32,767 pixels the stability score is nonsense."""
    height, width = 80, 40_000
    (record, *_) = MaskGenerator(
        UniformSegmenter(5.0, -5.0, -5.0), points_per_side=1, pred_iou_thresh=0.5, output_mode="coco_rle"
    ).generate(picture(height, width))
    assert record["area"] == height * width
    assert record["stability_score"] == 1.0
    assert amg.calculate_stability_score(torch.full((1, 1, width), 5.0), 0.0, 1.0).item() == 1.0  # wrong / wrong
    row = torch.cat([torch.full((30_000,), 5.0), torch.zeros(10_000)])  # stability 0.75
    assert amg.calculate_stability_score(row[None, None], 0.0, 1.0).item() < 0


def test_stability_counts_do_not_wrap_around() -> None:
    """The part above the high threshold fits 16 bits, the part above the low one does not."""
    upsampler = Upsampler(4, 4, (1, 4), (1, 40_000), torch.device("cpu"))
    row = torch.tensor([5.0, 5.0, 0.0, 0.0])
    pixels = torch.nn.functional.interpolate(row[None, None], 40_000, mode="linear", align_corners=False)[0, 0]
    measured = upsampler.measure(row.expand(1, 4, 4), 0.0, 1.0)
    expected = (pixels > 1).sum().double() / (pixels > -1).sum()
    assert measured.stability[0] == pytest.approx(expected.item(), abs=1e-7)
    assert amg.calculate_stability_score(pixels[None, None], 0.0, 1.0).item() < 0


def test_issues_427_554_641_masks_beyond_2_to_the_31_pixels() -> None:
    """The reference puts all masks of a batch into runs at once and fails above 2^31 pixels, masks times image size.

    Here an image of 2^31 pixels and more holds one small mask in its far corner: positions stay exact, and the work
    depends on the mask."""
    side = 50_000
    window = CropWindow(side - 600, side - 400, side, side, 1)
    upsampler = Upsampler(64, 256, (171, 256), window.shape, torch.device("cpu"))
    logits = torch.full((1, 64, 64), -9.0)
    logits[:, 20:41, 30:50] = 9.0
    measured = upsampler.measure(logits, 0.0, 1.0)
    region = measured.regions[0]
    (runs,) = upsampler.runs([logits[0, region.cells_y, region.cells_x]], [region], 0.0, window, side, side)
    x0, y0, x1, y1 = measured.boxes[0].tolist()
    assert rle.box(runs) == (window.x0 + x0, window.y0 + y0, window.x0 + x1, window.y0 + y1)
    assert int(runs.area()) == measured.area[0]
    encoded = {"size": [side, side], "counts": rle.counts_string(runs).encode()}
    assert int(coco.area(encoded)) == measured.area[0]
    assert coco.toBbox(encoded).tolist() == [window.x0 + x0, window.y0 + y0, x1 - x0 + 1, y1 - y0 + 1]


def test_equal_scores_keep_the_order_of_the_clicks() -> None:
    """Of identical masks with identical scores the first click's stays, as in the reference, whatever the batch."""
    for batch in (1, 5, 64):
        (record,) = MaskGenerator(UniformSegmenter(), points_per_side=3, points_per_batch=batch).generate(
            picture(90, 120)
        )
        assert record["point_coords"] == [[20.0, 15.0]]


def test_issues_187_191_194_257_small_masks_can_be_dropped() -> None:
    """min_mask_region_area leaves small masks alone, as in the reference; `drop_small_masks` drops them."""
    settings = {"points_per_side": 12, "stability_score_thresh": 0.6, "min_mask_region_area": 400}
    kept = generate((200, 300), **settings)
    assert_same_records(kept, generate_with_reference((200, 300), **settings))
    assert min(record["area"] for record in kept) < 400
    dropped = generate((200, 300), drop_small_masks=True, **settings)
    assert 0 < len(dropped) < len(kept)
    assert min(record["area"] for record in dropped) >= 400


def test_issue_309_largest_area() -> None:
    settings = {"points_per_side": 2, "stability_score_thresh": 0.0, "pred_iou_thresh": 0.0}
    segmenter = UniformSegmenter()
    assert len(MaskGenerator(segmenter, **settings).generate(picture(60, 80))) == 1
    assert MaskGenerator(segmenter, max_mask_area_fraction=0.95, **settings).generate(picture(60, 80)) == []


def test_issues_184_365_412_492_840_batches_of_images() -> None:
    generator = MaskGenerator(PlantedSegmenter(), points_per_side=8, stability_score_thresh=0.6)
    images = [picture(100, 150), picture(150, 90)]
    for masks, image in zip(generator.generate_batch(images), images, strict=True):
        alone = generator.run(generator.prepare(image))
        assert masks.counts == alone.counts
        assert len(masks) > 5


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1), (1, 1)])
def test_thin_images(shape: tuple[int, int]) -> None:
    """The reference cannot resize an image of which a side would round to 0 pixels."""
    if max(shape) > 1:
        with pytest.raises(ValueError, match="must be > 0"):
            generate_with_reference(shape, points_per_side=2)
    records = MaskGenerator(UniformSegmenter(), points_per_side=2, output_mode="coco_rle").generate(picture(*shape))
    assert [record["area"] for record in records] == [shape[0] * shape[1]] * len(records)
    assert records


def test_crops_of_an_image_smaller_than_their_number() -> None:
    with pytest.raises(ValueError):
        generate_with_reference((3, 5), crop_n_layers=2, points_per_side=4)
    assert isinstance(generate((3, 5), crop_n_layers=2, points_per_side=4), list)


def test_boxes_are_one_pixel_less_than_pycocotools_says() -> None:
    """Kept on purpose: `bbox` is (x0, y0, x1 - x0, y1 - y0) with x1, y1 inside, as in the reference and in SA-1B."""
    records = generate((200, 300), points_per_side=8, stability_score_thresh=0.6)
    assert records
    for record in records:
        x, y, w, h = coco.toBbox(record["segmentation"]).tolist()
        assert record["bbox"] == [x, y, w - 1, h - 1]


def test_predicted_iou_may_exceed_one() -> None:
    """The IoU head has no sigmoid: 1.01 is a score like any other, in the reference and here."""
    records = generate((200, 300), points_per_side=12, stability_score_thresh=0.6)
    scores = [record["predicted_iou"] for record in records]
    assert max(scores) > 1
    assert scores == sorted(scores, reverse=True)
