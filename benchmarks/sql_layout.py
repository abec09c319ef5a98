"""The same masks as flat rows and as a nested list an image: how long do queries take?

    python benchmarks/sql_layout.py FOLDER --output benchmarks/results/sql_layout.json

Writes two datasets of 10 million masks (100,000 images) into FOLDER, which takes about 3.5 GB, or takes those that are
there: `flat`, by the writer of the package, read through `MaskDataset.duckdb()`; and `nested`, one row an image with
its masks as list<struct>, otherwise written alike: zstd 3, as many masks to a row group, the same values.

Run lengths are random characters of their alphabet, on average 190 (lengths are log-normal), since values that repeat
would compress too well. They are shorter than those of large photographs, which favours the nested layout.

Times are seconds of the processor (one thread), so that other programs do not count: the best of several, with the
files in the page cache. Both layouts must give the same answer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.dataset.manifest import make_manifest
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.schema import IMAGES, MASKS, SCHEMA_VERSION
from data_engine.dataset.writer import ROWS_PER_GROUP, FinishedFile, SliceWriter

IMAGES_PER_SLICE = 500
MASKS_PER_IMAGE = 100  # on average
HEIGHT, WIDTH = 1500, 2250
FINGERPRINT = "0" * 64
ALPHABET = (48, 112)  # bytes of compressed run lengths

# name -> (over flat rows, over nested ones)
QUERIES = {
    "mean area": (
        "select avg(area) from masks",
        "select avg(m.area) from (select unnest(masks) m from nested)",
    ),
    "histogram of predicted IoU": (
        "select floor(predicted_iou * 100) b, count(*) from masks group by b order by b",
        "select floor(m.predicted_iou * 100) b, count(*) from (select unnest(masks) m from nested) "
        "group by b order by b",
    ),
    "unstable masks, counted": (
        "select count(*) from masks where stability_score < 0.9",
        "select count(*) from (select unnest(masks) m from nested) where m.stability_score < 0.9",
    ),
    "images with most large masks": (
        "select i.uri, count(*) n from masks m join images i using (image_id) "
        "where m.area > 0.1 * m.width * m.height group by all order by n desc, i.uri limit 10",
        "select uri, count(*) n from (select uri, unnest(masks) m from nested) "
        "where m.area > 0.1 * m.width * m.height group by all order by n desc, uri limit 10",
    ),
    "boxes of one image": (
        "select bbox_x, bbox_y, bbox_w, bbox_h from masks where image_id = '{id}' order by mask_id",
        "select m.bbox_x, m.bbox_y, m.bbox_w, m.bbox_h "
        "from (select unnest(masks) m from nested where image_id = '{id}') order by m.mask_id",
    ),
    "run lengths of one image": (
        "select counts from masks where image_id = '{id}' order by mask_id",
        "select m.counts from (select unnest(masks) m from nested where image_id = '{id}') order by m.mask_id",
    ),
}


def slice_tables(number: int) -> tuple[pa.Table, pa.Table]:
    """(images, masks) of one slice. Each slice has a generator of its own, so both layouts see the same."""
    rng = np.random.default_rng(number)
    per_image = rng.poisson(MASKS_PER_IMAGE, IMAGES_PER_SLICE).astype(np.int32)
    total = int(per_image.sum())
    ids = np.array([f"sa_{number * IMAGES_PER_SLICE + i:07d}.jpg" for i in range(IMAGES_PER_SLICE)])
    side = np.clip(rng.lognormal(4.5, 0.9, (2, total)), 4, HEIGHT - 1).astype(np.int32)
    area = np.maximum(1, side[0] * side[1] * rng.uniform(0.4, 0.9, total)).astype(np.int32)
    x, y = (rng.uniform(0, 1, (2, total)) * (WIDTH - side[0], HEIGHT - side[1])).astype(np.int32)
    columns: dict[str, Any] = {
        "image_id": pa.array(ids).take(pa.array(np.repeat(np.arange(IMAGES_PER_SLICE), per_image))),
        "mask_id": np.arange(total) - np.repeat(np.cumsum(per_image) - per_image, per_image),
        **{name: np.full(total, value) for name, value in (("height", HEIGHT), ("width", WIDTH))},
        **{"bbox_x": x, "bbox_y": y, "bbox_w": side[0], "bbox_h": side[1], "area": area},
        "predicted_iou": rng.uniform(0.88, 1.02, total),
        "stability_score": 1 - rng.exponential(0.03, total).clip(0, 0.2),
        "point_x": x + side[0] / 2,
        "point_y": y + side[1] / 2,
        **{name: np.zeros(total) for name in ("crop_x", "crop_y", "crop_layer")},
        **{"crop_w": np.full(total, WIDTH), "crop_h": np.full(total, HEIGHT)},
        "counts": random_counts(rng, total),
        **{name: pa.nulls(total) for name in ("label", "label_score")},
    }
    masks = pa.table({field.name: pa.array(columns[field.name]).cast(field.type, safe=False) for field in MASKS}, MASKS)
    images = pa.Table.from_pylist([image_row(str(ids[i]), int(per_image[i])) for i in range(IMAGES_PER_SLICE)], IMAGES)
    return images, masks


def random_counts(rng: np.random.Generator, total: int) -> pa.Array:
    lengths = np.clip(rng.lognormal(5.0, 0.7, total), 8, 3000).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    text = rng.integers(*ALPHABET, int(offsets[-1]), np.uint8)
    return pa.StringArray.from_buffers(total, pa.py_buffer(offsets), pa.py_buffer(text))


def image_row(image_id: str, masks: int) -> dict[str, Any]:
    empty = {name: 0 for name in IMAGES.names if name.startswith("n_")}
    return {
        **empty,
        "image_id": image_id,
        "uri": f"photos/{image_id}",
        "shard": "a" * 16,
        "sha256": hashlib.sha256(image_id.encode()).digest(),
        "phash": int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big"),
        "width": WIDTH,
        "height": HEIGHT,
        "n_masks": masks,
        "n_candidates": masks,
        "status": "ok",
        "decode_ms": 20.0,
        "generate_ms": 400.0,
    }


def write_flat(root: Path, slices: int) -> None:
    """A dataset as `generate` writes it."""
    for folder in ("_plan", "_manifest", "images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "_plan/job.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "fingerprint": FINGERPRINT}))
    records = []
    for number in range(slices):
        images, masks = slice_tables(number)
        writer = SliceWriter({"fingerprint": FINGERPRINT})
        start = 0
        for row in images.to_pylist():
            own = masks.slice(start, row["n_masks"])
            start += row["n_masks"]
            writer.add(row, {name: own[name].combine_chunks() for name in own.column_names})
        files = dict(zip(("images", "masks"), writer.finish(), strict=True))
        parts = {kind: write_part(root, f"{kind}/{number:05d}.parquet", file) for kind, file in files.items()}
        records.append(
            CommitRecord(
                fingerprint=FINGERPRINT,
                shard="a" * 16,
                slice=number,
                first_image=number * IMAGES_PER_SLICE,
                final=number == slices - 1,
                totals=Totals(images=images.num_rows, masks=masks.num_rows, candidates=masks.num_rows),
                owner="o" * 32,
                attempt="1",
                **parts,
            )
        )
    manifest, table = make_manifest(FINGERPRINT, records, "o" * 32)
    (root / manifest.commits.file).write_bytes(table)
    (root / "_manifest.json").write_bytes(manifest.to_json())


def write_part(root: Path, name: str, file: FinishedFile) -> Part:
    (root / name).write_bytes(file.data)
    return Part(file=name, size=len(file.data), sha256=file.sha256, rows=file.rows)


def write_nested(root: Path, slices: int) -> None:
    """The same columns, the masks of an image in its row."""
    root.mkdir(parents=True)
    for number in range(slices):
        images, masks = slice_tables(number)
        names = [name for name in masks.column_names if name != "image_id"]
        rows = pa.StructArray.from_arrays([masks[name].combine_chunks() for name in names], names)
        offsets = np.concatenate([[0], np.cumsum(images["n_masks"].to_numpy())]).astype(np.int32)
        table = images.append_column("masks", pa.ListArray.from_arrays(pa.array(offsets), rows))
        pq.write_table(
            table,
            root / f"{number:05d}.parquet",
            compression="zstd",
            compression_level=3,
            row_group_size=ROWS_PER_GROUP // MASKS_PER_IMAGE,
            use_dictionary=["image_id", "shard", "status", "error_type"],
            write_page_index=True,
            write_page_checksum=True,
        )


def made(root: Path, slices: int, write: Callable[[Path, int], None]) -> None:
    """Takes a finished folder of that size, else writes it anew."""
    marker = root.with_suffix(".slices")
    if marker.exists() and marker.read_text() == str(slices):
        return
    shutil.rmtree(root, ignore_errors=True)
    begun = time.monotonic()
    write(root, slices)
    marker.write_text(str(slices))
    print(f"{root}: written in {time.monotonic() - begun:.0f} s", flush=True)


def timed(connection: duckdb.DuckDBPyConnection, query: str, repeats: int) -> tuple[float, list[tuple[Any, ...]]]:
    """(seconds of the fastest, its rows)"""
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        rows = connection.execute(query).fetchall()
        seconds.append(time.process_time() - begun)
    return min(seconds), rows


def same(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]) -> bool:
    """Sums of floating point numbers depend on the order of the rows."""
    if len(first) != len(second):
        return False
    pairs = [pair for rows in zip(first, second, strict=True) for pair in zip(*rows, strict=True)]
    return all(np.isclose(a, b, rtol=1e-9) if isinstance(a, float) else a == b for a, b in pairs)


def compare(folder: Path, slices: int, repeats: int) -> list[dict[str, Any]]:
    flat = MaskDataset(str(folder / "flat")).duckdb()
    nested = duckdb.connect()
    nested.read_parquet(str(folder / "nested/*.parquet")).create_view("nested")
    for connection in (flat, nested):
        connection.execute("set threads = 1")
    image_id = f"sa_{slices * IMAGES_PER_SLICE // 2 + 7:07d}.jpg"
    results = []
    for name, queries in QUERIES.items():
        over_flat, over_nested = (query.format(id=image_id) for query in queries)
        seconds, rows = timed(flat, over_flat, repeats)
        seconds_nested, rows_nested = timed(nested, over_nested, repeats)
        assert rows, name
        assert same(rows, rows_nested), (name, rows[:3], rows_nested[:3])
        ratio = seconds_nested / seconds
        results.append(
            {
                "query": name,
                "sql": over_flat,
                "sql_nested": over_nested,
                "flat_seconds": round(seconds, 4),
                "nested_seconds": round(seconds_nested, 4),
                "ratio": round(ratio, 1),
            }
        )
        print(f"{name:32} flat {seconds:8.3f} s   nested {seconds_nested:8.3f} s   {ratio:6.1f} x", flush=True)
    return results


def counts_share(folder: Path) -> float:
    """Of the bytes of the flat masks files, those of the run lengths."""
    counted = total = 0
    for path in sorted((folder / "flat/masks").iterdir()):
        metadata = pq.ParquetFile(path).metadata
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                total += chunk.total_compressed_size
                counted += chunk.total_compressed_size if chunk.path_in_schema == "counts" else 0
    return counted / total


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    slices = max(1, arguments.images // IMAGES_PER_SLICE)
    made(arguments.folder / "flat", slices, write_flat)
    made(arguments.folder / "nested", slices, write_nested)
    totals = MaskDataset(str(arguments.folder / "flat")).totals
    result = {
        "images": totals.images,
        "masks": totals.masks,
        "files": slices,
        "flat_bytes": folder_bytes(arguments.folder / "flat"),
        "nested_bytes": folder_bytes(arguments.folder / "nested"),
        "run_lengths_share_of_bytes": round(counts_share(arguments.folder), 3),
        "threads": 1,
        "repeats": arguments.repeats,
        "duckdb": duckdb.__version__,
        "pyarrow": pa.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "queries": compare(arguments.folder, slices, arguments.repeats),
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
