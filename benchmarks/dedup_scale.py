"""Seconds and memory of finding duplicates among millions of hashes, with planted ones, DuckDB on a few cores.

    python benchmarks/dedup_scale.py --output benchmarks/results/dedup_scale.json

Of the images of each table, 10 % share one hash (blank pictures), 5 % have the bytes of another, 10 % are near another
one (an even number of bits, up to the threshold) and 20,000 are frames of one scene (each up to four bits from it); the
others have random hashes with 32 of 64 bits set, as photographs have. Every planted duplicate must be found. Each size
runs in a process of its own, whose peak memory is its high-water mark. Seconds of the processor, summed over threads,
are given beside those of the clock: on a machine with other work to do, only they can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.dedup.clusters import add_duplicates, add_members, counts_of
from data_engine.dedup.near import cluster_hashes
from data_engine.dedup.scratch import open_scratch
from data_engine.dedup.settings import DEFAULT_THRESHOLD, DedupSettings

FRAMES = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--thresholds", type=int, nargs="+", default=[4, DEFAULT_THRESHOLD])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", default="4GB", help="DuckDB's limit")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", action="store_true", help="the first size and threshold only, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.images[0], arguments.thresholds[0], arguments.threads, arguments.memory)))
        return
    runs = []
    for threshold in arguments.thresholds:
        for images in arguments.images:
            runs.append(in_a_process(images, threshold, arguments.threads, arguments.memory))
            print(json.dumps(runs[-1]), flush=True)
            result = {
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "duckdb": duckdb.__version__,
                "threads": arguments.threads,
                "memory_limit": arguments.memory,
                "runs": runs,
            }
            if arguments.output:
                arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def in_a_process(images: int, threshold: int, threads: int, memory: str) -> dict:
    command = [sys.executable, __file__, "--one", "--images", images, "--thresholds", threshold]
    command += ["--threads", threads, "--memory", memory]
    done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def measure(images: int, threshold: int, threads: int, memory: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "images.parquet"
        if os.fork() == 0:  # so that the memory of the making is not counted
            write_images(table, images, threshold)
            os._exit(0)
        if os.wait()[1]:
            raise SystemExit("the table could not be made")
        settings = DedupSettings(threshold=threshold, threads=threads, memory=memory, temp_folder=folder)
        seconds = {}
        with open_scratch(duckdb.connect(), settings) as connection:
            begun, processor = time.monotonic(), time.process_time()
            connection.execute(f"create table images as from '{table}'")
            connection.execute("create table hashes as select distinct phash as h from images")
            seconds["read"] = time.monotonic() - begun
            compared = cluster_hashes(connection, threshold)
            seconds["compare"] = time.monotonic() - begun - seconds["read"]
            add_members(connection, compared.clusters)
            add_duplicates(connection, exact_only=False)
            seconds["decide"] = time.monotonic() - begun - sum(seconds.values())
            counts = counts_of(connection, settings)
            processor = time.process_time() - processor
            ((missed,),) = connection.execute(MISSED).fetchall()
        assert missed == 0, f"{missed} planted duplicates were not found"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "images": images,
        "threshold": threshold,
        "hashes": compared.total,
        "bands": compared.bands,
        "keys": compared.keys,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "total_seconds": round(sum(seconds.values()), 1),
        "cpu_seconds": round(processor, 1),
        "peak_mib": round(peak),
        "counts": counts,
        "planted_missed": missed,
    }


# Every planted duplicate is in the cluster of the image that it was made of.
MISSED = """
select count(*) from images join duplicates as mine using (image_id)
full join duplicates as source on source.image_id = images.planted_of
where images.planted_of is not null and mine.cluster_id is distinct from source.cluster_id
"""


def write_images(path: Path, count: int, threshold: int) -> None:
    rng = np.random.default_rng(0)
    blank, frames, copies, near = count // 10, min(FRAMES, count // 20), count // 20, count // 10
    originals = count - blank - frames - copies - near
    hashes = np.empty(count, np.uint64)
    hashes[:originals] = balanced(rng, originals)
    of = np.full(count, -1, np.int64)
    at = originals
    for size, flips in ((copies, 0), (near, threshold)):
        of[at : at + size] = rng.integers(0, originals, size)
        hashes[at : at + size] = flipped(rng, hashes[of[at : at + size]], flips)
        at += size
    hashes[at : at + blank] = np.uint64(1 << 63)
    of[at + 1 : at + blank] = at
    at += blank
    scene = balanced(rng, 1)[0]
    hashes[at : at + frames] = flipped(rng, np.full(frames, scene), 4)
    hashes[at] = scene
    of[at + 1 : at + frames] = at
    names = pa.array([f"sa_{i:09d}.jpg" for i in range(count)])
    bytes_of = np.where(np.arange(count) < originals, np.arange(count), of)
    bytes_of[originals + copies :] = np.arange(originals + copies, count)
    digests = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32), count, [None, pa.py_buffer(np.repeat(bytes_of[:, None], 4, axis=1).tobytes())]
    )
    columns = {
        "image_id": names,
        "sha256": digests,
        "phash": hashes,
        "pixels": rng.integers(10_000, 5_000_000, count),
        "n_masks": rng.integers(0, 200, count).astype(np.int32),
        "planted_of": names.take(pa.array(of, mask=of < 0)),
    }
    order = pa.array(rng.permutation(count))
    pq.write_table(pa.table(columns).take(order), path, row_group_size=500_000)


def balanced(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random hashes with 32 of 64 bits set, uint64: bits of those that have too many or too few are flipped."""
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    left = np.arange(count)
    while len(left):
        some = hashes[left]
        ones = np.bitwise_count(some).astype(np.int64)
        bit = np.uint64(1) << rng.integers(0, 64, len(left), dtype=np.uint64)
        is_set = (some & bit) != 0
        hashes[left] = np.where(np.where(is_set, ones > 32, ones < 32), some ^ bit, some)
        left = left[ones != 32]
    return hashes


def flipped(rng: np.random.Generator, hashes: np.ndarray, most: int) -> np.ndarray:
    """Each with an even number of random bits flipped, 2 to `most`; 0 leaves them as they are."""
    bits = 2 * rng.integers(1, most // 2 + 1, len(hashes)) if most else np.zeros(len(hashes), np.int64)
    changed = hashes.copy()
    places = rng.random((len(hashes), 64), dtype=np.float32).argsort(axis=1)[:, :most].astype(np.uint64)
    for i in range(most):
        changed ^= np.where(i < bits, np.uint64(1) << places[:, i], np.uint64(0))
    return changed


if __name__ == "__main__":
    main()
