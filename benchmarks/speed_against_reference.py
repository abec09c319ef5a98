"""Automatic mask generation here and in segment-anything: same weights, same photograph, in turn, in one process.

    python benchmarks/speed_against_reference.py --model vit_b --points-per-side 16 --photo examples/photos/truck.jpg

vit_b has random weights whose answers are scaled to be as many and as large as a trained model's (tests/parity/
networks.py): what is computed, and so the time, does not depend on what the weights know.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from parity.networks import random_reference, segmenter_of
from parity.reference import SamAutomaticMaskGenerator, assert_same_records, modeling, reference_sam

from data_engine import MaskGenerator
from data_engine.sam.checkpoints import load_checkpoint
from data_engine.sam.model import SamArchitecture

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["vit_b", "starter"], default="vit_b")
    parser.add_argument("--photo", type=Path, default=Path("examples/photos/truck.jpg"))
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--crop-n-layers", type=int, default=0)
    parser.add_argument("--min-mask-region-area", type=int, default=0)
    parser.add_argument("--pred-iou-thresh", type=float, default=0.88)
    parser.add_argument("--stability-score-thresh", type=float, default=0.95)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", required=True, help="of the result: benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    settings = {
        "points_per_side": arguments.points_per_side,
        "crop_n_layers": arguments.crop_n_layers,
        "min_mask_region_area": arguments.min_mask_region_area,
        "pred_iou_thresh": arguments.pred_iou_thresh,
        "stability_score_thresh": arguments.stability_score_thresh,
        "output_mode": "coco_rle",
    }
    image = np.asarray(Image.open(arguments.photo).convert("RGB"))
    reference = random_reference(SamArchitecture.vit("b")) if arguments.model == "vit_b" else starter()
    generate = {
        "here": MaskGenerator(segmenter_of(reference), **settings).generate,
        "segment-anything": SamAutomaticMaskGenerator(reference, **settings).generate,
    }
    seconds, records = in_turn(generate, image, arguments.repeats)
    ratios = [theirs / ours for ours, theirs in zip(seconds["here"], seconds["segment-anything"], strict=True)]
    masks, equal = assert_same_records(records["here"], records["segment-anything"], score_tolerance=1e-3)
    result = {
        "model": arguments.model,
        "photo": arguments.photo.name,
        "image": list(image.shape[:2]),
        "settings": settings,
        "masks": masks,
        "masks_with_equal_runs": equal,
        "seconds": {name: [round(s, 3) for s in values] for name, values in seconds.items()},
        "times_faster": {"median": round(statistics.median(ratios), 2), "runs": [round(r, 2) for r in ratios]},
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def starter() -> modeling.Sam:
    """segment-anything's model with the starter's weights."""
    checkpoint = load_checkpoint("starter")
    model = reference_sam(checkpoint.architecture)
    model.load_state_dict(checkpoint.state)
    return model.eval()


def in_turn(
    generate: dict[str, Callable[[np.ndarray], Any]], image: np.ndarray, repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of every run and the last records; A B A B ..., so that drift of the machine's speed cancels out."""
    seconds: dict[str, list[float]] = {name: [] for name in generate}
    records = {}
    for run in range(repeats + 1):  # the first warms up
        for name, function in generate.items():
            begun = time.perf_counter()
            records[name] = function(image)
            if run:
                seconds[name].append(time.perf_counter() - begun)
    return seconds, records


def processor() -> str:
    """The processor's name as the kernel gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
