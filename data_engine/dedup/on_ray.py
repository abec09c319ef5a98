"""The same search on a Ray cluster, for tables that are too large for one machine: Ray Data reads and shuffles.

The images table is read where the workers are. Hashes are shuffled by the value of each key, so that all that share one
meet in one partition; a partition is compared by the same DuckDB joins as on one machine and gives back its clusters.
The driver joins those: it holds the hashes that have a neighbour, 16 bytes each, and the rows of the duplicates.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FSSpecHandler, PyFileSystem

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.reader import MaskDataset
from data_engine.dedup.bands import choose_bands, key_masks
from data_engine.dedup.crowds import crowded_keys
from data_engine.dedup.hash_clusters import HashClusters
from data_engine.dedup.mask_duplicates import find_mask_duplicates
from data_engine.dedup.near import SAMPLED, Compared, compare_by_key
from data_engine.errors import DatasetError
from data_engine.storage import filesystem, is_local

if TYPE_CHECKING:
    import duckdb

HASHES_PER_PARTITION = 2_000_000
SLICES_PER_CPU = 2  # whose masks are ordered at a time
KEYS_AT_ONCE = 8  # so many copies of the hashes are shuffled at a time

_COLUMNS = ["image_id", "sha256", "phash", "width", "height", "n_masks", "status"]
_MEMBERS = """
create table members (image_id varchar, sha256 blob, phash ubigint, pixels bigint, n_masks integer, cluster ubigint)
"""


def find_members(
    dataset: MaskDataset,
    connection: duckdb.DuckDBPyConnection,
    threshold: int,
    on_key: Callable[[int, int], None] = lambda done, keys: None,
) -> tuple[Compared, int]:
    """Fills `members` of the connection as `add_members` does. Returns what was compared, and of how many images.

    In a Ray cluster that this process is connected to. Raises DatasetError without Ray Data.
    """
    import ray

    images = _images(dataset)
    count = images.count()
    connection.execute(_MEMBERS)
    if not count:  # blocks without rows have no columns to work on
        return Compared(HashClusters(), 0, 1, 0), 0
    hashes = _distinct(images, count).materialize()
    compared = _compare(hashes, threshold, on_key)
    twice = _gathered(hashes.filter(expr="images > 1"), "h")
    clustered = np.union1d(compared.clusters.hashes, twice)
    labels = ray.put(pa.table({"h": clustered, "label": compared.clusters.labels_of(clustered)}))
    found = images.map_batches(_members, batch_format="pyarrow", fn_args=(labels,))
    for batch in found.iter_batches(batch_format="pyarrow"):
        if batch.num_rows:
            connection.register("batch", batch.select(["image_id", "sha256", "phash", "pixels", "n_masks", "cluster"]))
            connection.execute("insert into members from batch")
            connection.unregister("batch")
    return compared, count


def mask_duplicates(dataset: MaskDataset, records: Iterable[CommitRecord], iou_threshold: float) -> Iterator[pa.Table]:
    """What `find_mask_duplicates` finds in each of these slices, in their order, each a task of the cluster."""
    import ray

    task = ray.remote(_mask_duplicates)
    ahead = SLICES_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    for record in records:
        waiting.append(task.remote(dataset.root, record, iou_threshold))
        if len(waiting) > ahead:
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())


def _mask_duplicates(root: str, record: CommitRecord, iou_threshold: float) -> pa.Table:
    return find_mask_duplicates(MaskDataset(root), record, iou_threshold)


def _images(dataset: MaskDataset) -> Any:  # a ray.data.Dataset
    """The images that can be compared, as in `scratch.py`."""
    try:
        import ray.data
    except ImportError as error:
        raise DatasetError(f"--engine ray needs Ray Data ({error}): pip install 'data-engine[ray]'") from None
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    fragments = dataset.arrow("images")
    if not dataset.commits:
        return ray.data.from_arrow(_candidates(fragments.to_table(columns=_COLUMNS)))
    store = None
    if not is_local(dataset.root):  # not the dataset's own, which knows all of its files: it is sent with every task
        store = PyFileSystem(FSSpecHandler(filesystem(dataset.root)[0]))
    # Not the columns that Ray would make of folders such as status=done in the way to the dataset.
    read = ray.data.read_parquet(fragments.files, filesystem=store, columns=_COLUMNS, partitioning=None)
    return read.map_batches(_candidates, batch_format="pyarrow").materialize()


def _candidates(images: pa.Table) -> pa.Table:
    known = pc.and_(pc.equal(images["status"].cast(pa.string()), "ok"), images["phash"].is_valid())
    images = images.filter(known)
    pixels = pc.multiply(images["width"].cast(pa.int64()), images["height"].cast(pa.int64()))
    return images.select(["image_id", "sha256", "phash", "n_masks"]).append_column("pixels", pixels)


def _compare(hashes: Any, threshold: int, on_key: Callable[[int, int], None]) -> Compared:
    total = hashes.count()
    every = max(1, total // SAMPLED)
    sample = _gathered(hashes.map_batches(_sampled, batch_format="numpy", fn_args=(every,)), "h")
    bands = choose_bands(sample, total, threshold)
    masks = key_masks(threshold, bands)
    clusters = HashClusters()
    for first in range(0, len(masks), KEYS_AT_ONCE):
        on_key(first, len(masks))
        some = masks[first : first + KEYS_AT_ONCE]
        partitions = _partitions(total)
        keyed = hashes.map_batches(_keyed, batch_format="numpy", fn_args=(some, partitions))
        parts = keyed.groupby("part", num_partitions=partitions).map_groups(
            _compared, batch_format="pyarrow", fn_args=(some, threshold)
        )
        for batch in parts.iter_batches(batch_format="numpy"):
            if len(batch.get("h", ())):
                clusters.add(batch["h"].astype(np.uint64), batch["label"].astype(np.uint64))
    return Compared(clusters, total, bands, len(masks))


def _distinct(images: Any, count: int) -> Any:
    """Columns h, and images: how many have it."""
    partitions = _partitions(count)
    hashes = images.select_columns(["phash"]).map_batches(_parted, batch_format="numpy", fn_args=(partitions,))
    return hashes.groupby("part", num_partitions=partitions).map_groups(_counted, batch_format="pyarrow")


def _gathered(dataset: Any, column: str) -> np.ndarray:
    """A column of hashes, here."""
    batches = [batch[column] for batch in dataset.iter_batches(batch_format="numpy") if column in batch]
    return np.concatenate([np.empty(0, np.uint64), *batches]).astype(np.uint64)


def _parted(batch: dict[str, np.ndarray], partitions: int) -> dict[str, np.ndarray]:
    return {"h": batch["phash"], "part": _mixed(batch["phash"], 0) % partitions}


def _counted(part: pa.Table) -> pa.Table:
    return part.group_by("h").aggregate([([], "count_all")]).rename_columns(["h", "images"])


def _sampled(batch: dict[str, np.ndarray], every: int) -> dict[str, np.ndarray]:
    return {"h": batch["h"][_mixed(batch["h"], 1) % every == 0]}


def _keyed(batch: dict[str, np.ndarray], masks: list[int], partitions: int) -> dict[str, np.ndarray]:
    """Every hash once for each key, with the partition that all of that key's value go to."""
    hashes = batch["h"].astype(np.uint64)
    parts = [_mixed(hashes & np.uint64(mask), key) % partitions for key, mask in enumerate(masks)]
    return {
        "h": np.tile(hashes, len(masks)),
        "key": np.repeat(np.arange(len(masks), dtype=np.int16), len(hashes)),
        "part": np.concatenate(parts),
    }


def _compared(part: pa.Table, masks: list[int], threshold: int) -> pa.Table:
    """The clusters of one partition: each hash with a neighbour, and its label."""
    import duckdb

    clusters = HashClusters()
    keys, hashes = part["key"].to_numpy(), part["h"].to_numpy()
    with duckdb.connect() as connection:
        connection.execute("set threads = 1; set preserve_insertion_order = false")
        for key in np.unique(keys):
            mine = hashes[keys == key]
            connection.register("hashes", pa.table({"h": mine}))
            every = max(1, len(mine) // SAMPLED)
            crowded = crowded_keys(mine[::every], every, masks[key])
            compare_by_key(connection, masks[key], threshold, clusters, crowded, done=0)
            connection.unregister("hashes")
    return pa.table({"h": clusters.hashes, "label": clusters.labels})


def _members(images: pa.Table, reference: Any) -> pa.Table:
    """The images of clusters, with their `cluster`. reference: to a table of hashes `h`, sorted, and their `label`."""
    import ray

    labels = ray.get(reference)
    known, label = labels["h"].to_numpy(), labels["label"].to_numpy()
    if not len(known):
        return images.slice(0, 0).append_column("cluster", pa.array([], pa.uint64()))
    phash = images["phash"].to_numpy()
    place = np.searchsorted(known, phash).clip(max=len(known) - 1)
    images = images.append_column("cluster", pa.array(label[place]))
    return images.filter(pa.array(known[place] == phash))


def _partitions(hashes: int) -> int:
    return -(-hashes // HASHES_PER_PARTITION) or 1


def _mixed(values: np.ndarray, salt: int) -> np.ndarray:
    """Well-mixed uint64 (the finaliser of MurmurHash3), so that partitions are even though keys have gaps."""
    x = values.astype(np.uint64) ^ np.uint64(salt * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(33))
