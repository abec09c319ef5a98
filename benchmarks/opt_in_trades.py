"""What adaptive prompting and suppression by masks save and cost: photographs, each with every setting in turn.

    python benchmarks/opt_in_trades.py DATA --images 20 --output benchmarks/results/opt_in_trades.json

DATA holds `bsds` and `coco`, as in docs/evaluation.md. The starter model masks the first so many photographs of each,
those of its training left out. Beside it, "people" answers every click with the regions that three annotators of BSDS
drew there: a model that never errs and never varies, to see what adaptive prompting does to one. Its seconds say
nothing.

Seconds are of the processor (one thread), so that other programs do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from PIL import Image
from rlemasklib import RLEMask
from torch import Tensor
from torch.nn import functional as F

from data_engine.config import load_config
from data_engine.evaluation.average_recall import AverageRecall
from data_engine.evaluation.ground_truth import AnnotatedImage
from data_engine.evaluation.layouts import open_ground_truth
from data_engine.masks import rle
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.image_masks import ImageMasks
from data_engine.masks.settings import MaskSettings
from data_engine.sam.resize import resize_image
from data_engine.sam.segmenter import Decoded, Embeddings, Segmenter, View, load_segmenter

TRAINED_ON = Path(__file__).parents[1] / "examples" / "photos" / "train"
QUICKSTART = load_config("quickstart").masks
DENSE = replace(QUICKSTART, points_per_side=32)
CASES = {
    "quickstart, 16x16 points": QUICKSTART,
    "quickstart, 32x32 points": DENSE,
    "thresholds of 0.3, 32x32 points": replace(DENSE, pred_iou_thresh=0.3, stability_score_thresh=0.3),
}
PEOPLE = "people, 32x32 points"
VARIANTS: dict[str, dict[str, Any]] = {
    "off": {},
    "adaptive": {"adaptive_points": True},
    "adaptive, step 4": {"adaptive_points": True, "adaptive_step": 4},
    "mask suppression": {"suppression": "mask"},
    "adaptive and mask suppression": {"adaptive_points": True, "suppression": "mask"},
}


class People:
    """Answers a click with the region under it of three annotators, the one who drew the fewest regions first."""

    image_size, logits_size, mask_threshold, device = 1024, 256, 0.0, torch.device("cpu")
    prompts_per_chunk, prompt_threads, views_per_batch = 64, 1, 1

    def __init__(self, maps: list[np.ndarray]) -> None:
        drawn = sorted(maps, key=lambda ids: len(np.unique(ids)))
        self._drawn = [drawn[0], drawn[len(drawn) // 2], drawn[-1]]
        self._known: dict[tuple[int, int], Tensor] = {}

    def prepare(self, image: np.ndarray) -> View:
        shape = resize_image(image, self.image_size).shape[:2]
        return View(torch.zeros(3, 1, 1, dtype=torch.uint8), shape, image.shape[:2])

    def encode(self, views: list[View]) -> Embeddings:
        return Embeddings(torch.zeros(len(views), 1, 1, 1))

    def decode(self, *_: object, points: Tensor, **__: object) -> Decoded:
        scale = max(self._drawn[0].shape) / self.image_size
        x, y = (points[:, 0] * scale).long().numpy().T
        numbers = [ids[y, x].tolist() for ids in self._drawn]
        found = [
            self._logits(who, number) for of_point in zip(*numbers, strict=True) for who, number in enumerate(of_point)
        ]
        logits = torch.stack(found).unflatten(0, (len(points), 3))
        return Decoded(torch.tensor([[0.9, 0.92, 0.94]]).expand(len(points), 3), lambda wanted: logits[wanted])

    def _logits(self, who: int, number: int) -> Tensor:
        if (who, number) not in self._known:
            mask = (self._drawn[who] == number).astype(np.float32)
            side = [round(s * self.logits_size / max(mask.shape)) for s in mask.shape]
            small = F.interpolate(torch.from_numpy(mask)[None, None], side, mode="area")[0, 0]
            pad = (0, self.logits_size - side[1], 0, self.logits_size - side[0])
            self._known[who, number] = F.pad(40 * (small - 0.5), pad, value=-20.0)
        return self._known[who, number]


@dataclass
class Tally:
    """Sums over images of one setting."""

    prompts: int = 0
    seconds: float = 0.0
    masks: int = 0
    found: dict[str, int] = field(default_factory=lambda: {"0.75": 0, "0.9": 0})  # masks of "off" that are here too
    known: dict[str, int] = field(default_factory=lambda: {"0.75": 0, "0.9": 0})  # masks here that are in "off" too
    recall: AverageRecall = field(default_factory=AverageRecall)

    def add(self, image: AnnotatedImage, masks: ImageMasks, off: list[RLEMask], seconds: float) -> None:
        self.prompts += masks.filtered.candidates // 3
        self.seconds += seconds
        self.masks += len(masks)
        mine = runs_of(masks)
        if mine and off:
            ious = RLEMask.iou_matrix(off, mine)
            for at in self.found:
                self.found[at] += int((ious.max(1) >= float(at)).sum())
                self.known[at] += int((ious.max(0) >= float(at)).sum())
        self.recall.add(masks.height, masks.width, image.masks, image.crowds, masks.counts, masks.predicted_iou)

    def result(self, off: Tally, images: int) -> dict[str, Any]:
        recall = self.recall.result()
        return {
            "prompts_per_image": round(self.prompts / images, 1),
            "prompts_of_off": round(self.prompts / off.prompts, 3),
            "cpu_seconds_per_image": round(self.seconds / images, 3),
            "cpu_seconds_of_off": round(self.seconds / off.seconds, 3),
            "masks_per_image": round(self.masks / images, 2),
            "masks_of_off_found": {at: round(n / max(1, off.masks), 3) for at, n in self.found.items()},
            "masks_found_that_off_has": {at: round(n / max(1, self.masks), 3) for at, n in self.known.items()},
            "AR@100": round(recall["AR@100"]["all"] or 0, 4),
            "AR@1000": round(recall["AR@1000"]["all"] or 0, 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=20, help="of each of the two data sets")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    starter = load_segmenter("starter", "cpu")
    both = [*photographs(arguments.data / "bsds", arguments.images)]
    people = [(image, People(maps_of(arguments.data / "bsds", image))) for image in both]
    both += photographs(arguments.data / "coco", arguments.images)
    cases = {name: measure(name, settings, [(image, starter) for image in both]) for name, settings in CASES.items()}
    cases[PEOPLE] = measure(PEOPLE, DENSE, people)
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "torch": torch.__version__,
        "images": {"starter": len(both), "people": len(people)},
        "cases": cases,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def photographs(folder: Path, count: int) -> list[AnnotatedImage]:
    truth = open_ground_truth(str(folder))
    return list(truth.leave_out(TRAINED_ON).images(count))


def maps_of(folder: Path, image: AnnotatedImage) -> list[np.ndarray]:
    files = sorted((folder / "segments").glob(f"{Path(image.image_id).stem}_*.png"))
    return [np.asarray(Image.open(file)).astype(np.int64) for file in files]


def measure(name: str, settings: MaskSettings, work: list[tuple[AnnotatedImage, Any]]) -> dict[str, Any]:
    """The variants in turn on every image; then, for each that leaves out points, a grid with as many prompts."""
    tallies = {variant: Tally() for variant in VARIANTS}
    off: list[list[RLEMask]] = []
    for image, segmenter in work:
        for variant, overrides in VARIANTS.items():
            masks, seconds = generate(segmenter, image, replace(settings, **overrides))
            if variant == "off":
                off.append(runs_of(masks))
            tallies[variant].add(image, masks, off[-1], seconds)
    assert settings.points_per_side is not None
    for variant in ("adaptive", "adaptive, step 4"):
        side = round(settings.points_per_side * (tallies[variant].prompts / tallies["off"].prompts) ** 0.5)
        sparser = tallies[f"{side}x{side} points, as many as {variant}"] = Tally()
        for (image, segmenter), full in zip(work, off, strict=True):
            masks, seconds = generate(segmenter, image, replace(settings, points_per_side=side))
            sparser.add(image, masks, full, seconds)
    results = {variant: tally.result(tallies["off"], len(work)) for variant, tally in tallies.items()}
    for variant, found in results.items():
        print(f"{name}: {variant}: {json.dumps(found)}", flush=True)
    return {"settings": asdict(settings), "variants": results}


def generate(segmenter: Segmenter, image: AnnotatedImage, settings: MaskSettings) -> tuple[ImageMasks, float]:
    """The masks, and the processor's seconds."""
    generator = MaskGenerator(segmenter, settings)
    prepared = generator.prepare(image.pixels)
    begun = time.process_time()
    masks = generator.run(prepared)
    return masks, time.process_time() - begun


def runs_of(masks: ImageMasks) -> list[RLEMask]:
    return [rle.from_counts_string(counts, masks.height, masks.width) for counts in masks.counts]


if __name__ == "__main__":
    main()
