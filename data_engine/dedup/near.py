"""All pairs of hashes within a Hamming distance, by DuckDB joins: one for each key of `bands.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from data_engine.dedup.bands import choose_bands, key_masks
from data_engine.dedup.crowds import crowded_keys, join_crowds
from data_engine.dedup.hash_clusters import HashClusters

if TYPE_CHECKING:
    import duckdb

SAMPLED = 200_000  # hashes to choose the bands by, and to see crowds in

_BATCH = 1_000_000  # pairs in memory
_PAIRS = """
select a.h as lower, b.h as upper
from labelled a join labelled b on (a.h & {mask}::ubigint) = (b.h & {mask}::ubigint) and a.h < b.h
where a.label <> b.label and bit_count(xor(a.h, b.h)) <= {threshold}
"""
_LABELLED = """
create or replace temp table labelled as
select hashes.h, coalesce(labels.label, hashes.h) as label from hashes left join labels using (h)
"""


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of comparing all hashes with each other."""

    clusters: HashClusters
    total: int  # distinct hashes
    bands: int
    keys: int


def cluster_hashes(
    connection: duckdb.DuckDBPyConnection, threshold: int, on_key: Callable[[int, int], None] = lambda done, keys: None
) -> Compared:
    """Clusters of the column `h` (ubigint, distinct) of the table `hashes`. on_key is told how far it is."""
    ((total,),) = connection.execute("select count(*) from hashes").fetchall()
    every = max(1, total // SAMPLED)
    found = connection.execute("select h from hashes where hash(h) % ? = 0", [every]).fetchnumpy()
    sample = np.asarray(found["h"], np.uint64)
    bands = choose_bands(sample, total, threshold)
    masks = key_masks(threshold, bands)
    clusters = HashClusters()
    for done, mask in enumerate(masks):
        on_key(done, len(masks))
        compare_by_key(connection, mask, threshold, clusters, crowded_keys(sample, every, mask), done)
    return Compared(clusters, total, bands, len(masks))


def compare_by_key(
    connection: duckdb.DuckDBPyConnection,
    mask: int,
    threshold: int,
    clusters: HashClusters,
    crowded: np.ndarray,
    done: int,
) -> None:
    """Joins in `clusters` the hashes of the table `hashes` that share a key and are within the threshold.

    crowded: values of the key that very many share. done: keys before this one; 0 for other hashes than the last time.
    """
    if done & (done - 1) == 0:  # now and then: what is one cluster already needs no pair any more
        connection.register("labels", pa.table({"h": clusters.hashes, "label": clusters.labels}))
        connection.execute(_LABELLED)
        connection.unregister("labels")
    for left, right in _pairs(connection, mask, threshold, crowded):
        clusters.add(left, right)
    if len(crowded):
        join_crowds(connection, mask, crowded, threshold, clusters)


def _pairs(
    connection: duckdb.DuckDBPyConnection, mask: int, threshold: int, crowded: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs within the threshold that share the key, but for crowded values of it."""
    query = _PAIRS.format(mask=mask, threshold=threshold)
    if len(crowded):
        query += f" and (a.h & {mask}::ubigint) not in ({', '.join(map(str, crowded.tolist()))})"
    for batch in connection.sql(query).to_arrow_reader(_BATCH):
        yield batch["lower"].to_numpy(), batch["upper"].to_numpy()
