"""Which changes of a photograph the perceptual hash survives, by threshold, and which photographs it takes for another.

    python benchmarks/dedup_quality.py FOLDER... --output benchmarks/results/dedup_quality.json

Every photograph of the folders is changed in each way, hashed as a job hashes it, and compared with its original
(recall) and with every change of every other photograph (false pairs).
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from math import comb
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from data_engine.images.decode import decode
from data_engine.images.fingerprint import perceptual_hash
from data_engine.images.settings import InputSettings

THRESHOLDS = range(0, 17)
SUFFIXES = {".jpg", ".jpeg", ".png"}


def resized(share: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize(
        (max(1, round(image.width * share)), max(1, round(image.height * share))), Image.Resampling.BICUBIC
    )


def compressed(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def cropped(share: float, corner: bool = False) -> Callable[[Image.Image], Image.Image]:
    """`share` of each side's length gone: half of it at either end, or all of it at the left and the top."""

    def change(image: Image.Image) -> Image.Image:
        x, y = round(image.width * share), round(image.height * share)
        left, top = (x, y) if corner else (x // 2, y // 2)
        return image.crop((left, top, left + image.width - x, top + image.height - y))

    return change


def brightened(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


def watermarked(image: Image.Image) -> Image.Image:
    """Half-transparent white words across the middle, a third of the width."""
    mark = Image.new("RGBA", image.size)
    font = ImageFont.load_default(size=max(10, image.width // 16))
    draw = ImageDraw.Draw(mark)
    draw.text((image.width // 2, image.height // 2), "watermark", (255, 255, 255, 128), font, anchor="mm")
    return Image.alpha_composite(image.convert("RGBA"), mark).convert("RGB")


def chained(image: Image.Image) -> Image.Image:
    """What an image goes through that is shared twice: half the size, strongly compressed, twice."""
    return compressed(60)(resized(0.7)(compressed(50)(resized(0.7)(image))))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half size": resized(0.5),
    "quarter size": resized(0.25),
    "one and a half size": resized(1.5),
    "JPEG 95": compressed(95),
    "JPEG 75": compressed(75),
    "JPEG 50": compressed(50),
    "JPEG 30": compressed(30),
    "shared twice": chained,
    "brightness -30 %": brightened(0.7),
    "brightness +10 %": brightened(1.1),
    "brightness +30 %": brightened(1.3),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "watermark": watermarked,
    "crop 1 %": cropped(0.01),
    "crop 2 %": cropped(0.02),
    "crop 5 %": cropped(0.05),
    "crop 10 %": cropped(0.10),
    "corner crop 5 %": cropped(0.05, corner=True),
    "flip": ImageOps.mirror,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    files = sorted(file for folder in arguments.folders for file in folder.rglob("*") if file.suffix in SUFFIXES)
    hashes = np.array([hashes_of(file) for file in files])  # photographs x (1 + changes)
    result = {
        "photographs": len(files),
        "folders": [f"{folder.parent.name}/{folder.name}" for folder in arguments.folders],
        "recall": recall(hashes),
        "expected_by_chance": {
            f"{images:,} images": {str(t): round(images**2 / 2 * by_chance(t), 1) for t in THRESHOLDS}
            for images in (1_000_000, 11_000_000, 100_000_000)
        },
        "different_photographs": false_pairs(hashes, files),
    }
    print(table(result))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def hashes_of(file: Path) -> np.ndarray:
    """The original's hash, then those of its changes."""
    image = Image.fromarray(decode(file.read_bytes(), InputSettings()))
    changed = [image, *(change(image) for change in CHANGES.values())]
    return np.array([perceptual_hash(np.asarray(one)) for one in changed], np.uint64)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    bits = np.unpackbits((a ^ b)[..., None].view(np.uint8), axis=-1)
    return bits.sum(-1, dtype=np.int64)


def recall(hashes: np.ndarray) -> dict[str, dict[str, float]]:
    """Share of the photographs whose change is within each threshold of the original."""
    apart = distance(hashes[:, :1], hashes[:, 1:])
    return {
        name: {str(t): round(float((apart[:, i] <= t).mean()), 4) for t in THRESHOLDS} for i, name in enumerate(CHANGES)
    }


def false_pairs(hashes: np.ndarray, files: list[Path]) -> dict[str, object]:
    """Pairs of different photographs, as they are and changed. A flip is not taken for the same picture."""
    kept = hashes[:, :-1]
    per_photograph = kept.shape[1]
    within = dict.fromkeys(THRESHOLDS, 0)
    originals = dict.fromkeys(THRESHOLDS, 0)
    closest: list[tuple[int, str, str]] = []
    for i in range(len(kept) - 1):
        apart = distance(kept[i][:, None, None], kept[None, i + 1 :])  # changes x others x changes
        for t in THRESHOLDS:
            within[t] += int((apart <= t).sum())
            originals[t] += int((apart[0, :, 0] <= t).sum())
        nearest = int(apart[0, :, 0].argmin())
        closest.append((int(apart[0, nearest, 0]), files[i].name, files[i + 1 + nearest].name))
    photographs = len(kept) * (len(kept) - 1) // 2
    rows, columns = np.triu_indices(len(kept), 1)
    apart = np.bincount(distance(kept[rows, 0], kept[columns, 0]))
    true = len(kept) * per_photograph * (per_photograph - 1) // 2
    found = {
        t: sum(int((distance(row[:, None], row[None]) <= t).sum()) - per_photograph for row in kept) // 2
        for t in THRESHOLDS
    }
    return {
        "pairs_of_originals": photographs,
        "originals_within": {str(t): originals[t] for t in THRESHOLDS},
        "pairs_of_changes": photographs * per_photograph**2,
        "changes_within": {str(t): within[t] for t in THRESHOLDS},
        "true_pairs": true,
        "true_within": {str(t): found[t] for t in THRESHOLDS},
        "precision": {str(t): round(found[t] / max(1, found[t] + within[t]), 5) for t in THRESHOLDS},
        "closest_originals": sorted(closest)[:5],
        "originals_by_distance": {str(d): int(n) for d, n in enumerate(apart) if n},
        "originals_within_20_by_chance": round(photographs * by_chance(20), 1),
        "originals_within_24_by_chance": round(photographs * by_chance(24), 1),
    }


def by_chance(threshold: int) -> float:
    """Share of pairs of random hashes within a threshold. Each has 32 of 64 bits set, so distances are even."""
    return sum(comb(32, k) ** 2 for k in range(threshold // 2 + 1)) / comb(64, 32)


def table(result: dict) -> str:
    shown = [0, 2, 4, 6, 8, 10, 12, 16]
    rows = [f"{'change':<22}" + "".join(f"{t:>8}" for t in shown)]
    for name, by_threshold in result["recall"].items():
        rows.append(f"{name:<22}" + "".join(f"{by_threshold[str(t)]:>8.1%}" for t in shown))
    different = result["different_photographs"]
    for name in ("originals_within", "changes_within", "true_within", "precision"):
        rows.append(f"{name:<22}" + "".join(f"{different[name][str(t)]:>8}" for t in shown))
    for name, expected in result["expected_by_chance"].items():
        rows.append(f"{name:<22}" + "".join(f"{expected[str(t)]:>8,.0f}" for t in shown))
    rows.append(f"{result['photographs']} photographs; closest: {different['closest_originals']}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
