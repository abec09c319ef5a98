"""What stands in for torchvision must suppress as this package's own suppression does, which is tested against it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from data_engine.bench.torchvision_standin import batched_nms, box_area, torchvision_or_standin
from data_engine.masks.suppress import box_nms


@pytest.mark.parametrize("count", [0, 1, 80])
def test_suppression(count: int) -> None:
    random = np.random.default_rng(count)
    corners = random.integers(0, 40, (count, 2, 2)).astype(np.float32)
    boxes = np.sort(corners, 1).reshape(-1, 4)  # many overlap, some are empty
    scores = random.integers(0, 6, count).astype(np.float32)  # many tie
    kept = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.zeros(count), 0.5)
    assert kept.tolist() == box_nms(boxes, scores, 0.5).tolist()


def test_other_categories_are_refused() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    with pytest.raises(NotImplementedError):
        batched_nms(boxes, torch.ones(1), torch.ones(1), 0.5)


def test_area() -> None:
    assert box_area(torch.tensor([[1, 2, 4, 8]])).tolist() == [18]


def test_it_leaves_nothing_behind() -> None:
    before = {name for name in sys.modules if name.split(".")[0] == "torchvision"}
    with torchvision_or_standin() as version:
        assert version
    assert {name for name in sys.modules if name.split(".")[0] == "torchvision"} >= before
    if version == "stand-in":
        assert "torchvision" not in sys.modules


def test_without_segment_anything_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['segment_anything'] = None\n"
        "from data_engine.bench.__main__ import main\n"
        "sys.argv = ['bench', 'examples/photos/dog.jpg', '--against', 'segment-anything']\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install segment-anything" in done.stderr
    assert "Traceback" not in done.stderr
