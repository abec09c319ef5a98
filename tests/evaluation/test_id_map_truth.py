"""PNGs of region numbers as ground truth."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation.stripes import ids, regions, write_picture
from PIL import Image

from data_engine.errors import SourceError
from data_engine.evaluation.layouts import open_ground_truth
from data_engine.masks import rle


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_every_number_but_zero_is_a_mask(tmp_path, kind):
    write_picture(tmp_path / "a.png")
    numbers = ids().astype(kind)
    numbers[numbers == 1] = 0
    (tmp_path / "maps").mkdir()
    Image.fromarray(numbers).save(tmp_path / "maps/a.png")
    (image,) = open_ground_truth(str(tmp_path), str(tmp_path / "maps")).images()
    assert len(image.masks) == 3
    for runs, mask in zip(image.masks, regions()[1:], strict=True):
        np.testing.assert_array_equal(rle.decode(runs), mask)


def test_a_palette_is_read_as_numbers_not_as_colours(tmp_path):
    write_picture(tmp_path / "images/a.png")
    (tmp_path / "segments").mkdir()
    image = Image.fromarray(ids()).convert("P")
    image.putpalette([255, 255, 255] * 256)
    image.save(tmp_path / "segments/a.png")
    assert len(next(open_ground_truth(str(tmp_path)).images()).masks) == 4


def test_of_several_annotators_the_first_is_taken(tmp_path):
    for name in ("a", "b[1]", "none"):
        write_picture(tmp_path / f"images/{name}.png")
    (tmp_path / "segments").mkdir()
    for name, limit in (("a_0", 2), ("a_1", 4), ("b[1]_2", 3)):
        Image.fromarray(np.minimum(ids(), limit)).save(tmp_path / f"segments/{name}.png")
    truth = open_ground_truth(str(tmp_path))
    assert [(image.image_id, len(image.masks)) for image in truth.images()] == [("a.png", 2), ("b[1].png", 3)]
    assert truth.without == 1


def test_maps_that_cannot_be_used_are_named(tmp_path):
    write_picture(tmp_path / "images/a.png")
    file = tmp_path / "segments/a.png"
    write_picture(file)  # three channels
    with pytest.raises(SourceError, match=r"segments/a.png is no id map: it has 3 channels"):
        list(open_ground_truth(str(tmp_path)).images())
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(SourceError, match=r"segments/a.png cannot be read as PNG"):
        list(open_ground_truth(str(tmp_path)).images())
    Image.fromarray(ids()[:100]).save(file)
    with pytest.raises(SourceError, match=r"a.png is 256x256 pixels, its masks in .* are 256x100"):
        list(open_ground_truth(str(tmp_path)).images())
