"""Areas and boxes, for any number of masks."""

import numpy as np
import pytest
from pycocotools import mask as coco

from data_engine.dataset.coco_runs import area_and_box


@pytest.mark.parametrize("count", [0, 1, 255, 256, 700])
def test_any_number_of_masks(count):
    size = 1000
    rles = []
    for i in range(count):
        mask = np.zeros((size, size), np.uint8, order="F")
        mask[i : i + 20, : size - i] = 1
        rles.append(coco.encode(mask))
    area, box = area_and_box(rles)
    numbers = np.arange(count)
    np.testing.assert_array_equal(area, 20 * (size - numbers))
    np.testing.assert_array_equal(
        box.reshape(-1, 4), np.stack([0 * numbers, numbers, size - numbers, 0 * numbers + 20], 1)
    )
    assert (area.dtype, box.dtype) == (np.int64, np.int64)
