"""Which changes of a photograph the semantic stage of `data-engine dedup` finds, by cosine, and what it takes wrongly.

    python benchmarks/dedup_semantic.py FOLDER... --synthetic 100000 --output benchmarks/results/dedup_semantic.json

Every photograph of the folders is changed in each way and embedded as the stage does it. Vectors are centered on the
mean of the originals. Recall: the change is above the cosine with its original. Wrong: two different photographs are.
--synthetic: that many made-up vectors, one in ten a copy of another: what the borders of clusters lose, and the time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from dedup_quality import SUFFIXES, brightened, compressed, cropped, distance
from PIL import Image, ImageOps

from data_engine.dedup.cosine_pairs import join_similar
from data_engine.dedup.embedding import pooled_embeddings
from data_engine.dedup.kmeans import assign, choose_k, fit_centroids
from data_engine.dedup.settings import DEFAULT_THRESHOLD
from data_engine.images.decode import decode
from data_engine.images.fingerprint import perceptual_hash
from data_engine.images.settings import InputSettings
from data_engine.sam.segmenter import SamSegmenter, load_segmenter

COSINES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99)
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "flip": ImageOps.mirror,
    "crop 10 %": cropped(0.10),
    "crop 20 %": cropped(0.20),
    "brightness +30 %": brightened(1.3),
    "brightness -30 %": brightened(0.7),
    "JPEG 30": compressed(30),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--synthetic", type=int, metavar="N", default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    files = sorted(file for folder in arguments.folders for file in folder.rglob("*") if file.suffix in SUFFIXES)
    segmenter = load_segmenter(arguments.model, arguments.device)
    began = time.process_time()
    measured = [measure(segmenter, file) for file in files]
    seconds = time.process_time() - began
    vectors = np.stack([of_one for of_one, _ in measured])  # photographs x (1 + changes) x C
    hashes = np.stack([of_one for _, of_one in measured])
    result = {
        "photographs": len(files),
        "folders": [f"{folder.parent.name}/{folder.name}" for folder in arguments.folders],
        "model": {"name": Path(arguments.model).name, "sha256": segmenter.checkpoint.sha256},
        "device": segmenter.device.type,
        "processor_ms_an_image": round(1000 * seconds / (len(files) * (1 + len(CHANGES))), 1),
        "hash_recall": {
            name: round(float((distance(hashes[:, 0], hashes[:, i]) <= DEFAULT_THRESHOLD).mean()), 4)
            for i, name in enumerate(CHANGES, 1)
        },
        "hash_wrong_pairs": int(
            (distance(hashes[:, None, 0], hashes[None, :, 0]) <= DEFAULT_THRESHOLD).sum() - len(files)
        )
        // 2,
        "centered": compare(unit(vectors - vectors[:, 0].mean(axis=0)), files),
        "not_centered": compare(unit(vectors), files),
    }
    print(table(result))
    if arguments.synthetic:
        result["synthetic"] = synthetic(arguments.synthetic)
        print(result["synthetic"])
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def measure(segmenter: SamSegmenter, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and perceptual hashes of the original and of its changes."""
    image = Image.fromarray(decode(file.read_bytes(), InputSettings()))
    pictures = [np.asarray(one) for one in (image, *(change(image) for change in CHANGES.values()))]
    vectors = pooled_embeddings(segmenter, [segmenter.prepare(picture) for picture in pictures])
    return vectors, np.array([perceptual_hash(picture) for picture in pictures], np.uint64)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def compare(vectors: np.ndarray, files: list[Path]) -> dict[str, object]:
    originals = vectors[:, 0]
    between = originals @ originals.T
    rows, columns = np.triu_indices(len(files), 1)
    apart = between[rows, columns]
    nearest = [(round(float(apart[i]), 4), files[rows[i]].name, files[columns[i]].name) for i in np.argsort(-apart)[:5]]
    found: dict[str, dict[str, float]] = {}
    own_first: dict[str, float] = {}
    for i, name in enumerate(CHANGES, 1):
        products = vectors[:, i] @ originals.T
        found[name] = {str(t): round(float((np.diag(products) > t).mean()), 4) for t in COSINES}
        own_first[name] = round(float((products.argmax(axis=1) == np.arange(len(files))).mean()), 4)
    return {
        "recall": found,
        "own_original_is_nearest": own_first,
        "pairs_of_different": len(apart),
        "wrong_pairs": {str(t): int((apart > t).sum()) for t in COSINES},
        "with_a_wrong_neighbour": {
            str(t): int(((between - 2 * np.eye(len(files))) > t).any(axis=1).sum()) for t in COSINES
        },
        "nearest_different": nearest,
    }


def synthetic(count: int, dim: int = 256, groups: int = 300) -> dict[str, float]:
    """Scenes around `groups` centers; copies have a cosine of 0.96 to 1 with what they copy."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(groups, dim)).astype(np.float32)
    vectors = unit(centers[rng.integers(0, groups, count)] + rng.normal(size=(count, dim)).astype(np.float32))
    copies = count // 10
    noise = unit(rng.normal(size=(copies, dim)).astype(np.float32)) * rng.uniform(0, 0.28, (copies, 1))
    vectors[-copies:] = unit(vectors[:copies] + noise)
    began = time.process_time()
    k = choose_k(count)
    clusters = assign(vectors, fit_centroids(vectors, k))
    order = np.argsort(clusters, kind="stable")
    join_similar(vectors[order], clusters[order], 0.95)
    return {
        "vectors": count,
        "k": k,
        "largest_cluster": int(np.bincount(clusters).max()),
        "copies_in_the_cluster_of_their_original": round(float((clusters[:copies] == clusters[-copies:]).mean()), 4),
        "processor_seconds": round(time.process_time() - began, 1),
    }


def table(result: dict) -> str:
    shown = [str(t) for t in COSINES]
    lines = []
    for kind in ("centered", "not_centered"):
        lines.append(f"{kind:<24}" + "".join(f"{t:>8}" for t in shown))
        for name, by_cosine in result[kind]["recall"].items():
            lines.append(f"{name:<24}" + "".join(f"{by_cosine[t]:>8.1%}" for t in shown))
        for name in ("wrong_pairs", "with_a_wrong_neighbour"):
            lines.append(f"{name:<24}" + "".join(f"{result[kind][name][t]:>8}" for t in shown))
        lines.append(f"own original is nearest: {result[kind]['own_original_is_nearest']}")
        lines.append(f"nearest different: {result[kind]['nearest_different']}")
    lines.append(f"hash recall: {result['hash_recall']}, wrong pairs: {result['hash_wrong_pairs']}")
    lines.append(f"{result['processor_ms_an_image']} ms an image")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
