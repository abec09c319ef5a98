"""Keys that very many hashes share: frames of a camera that does not move, pages of one form.

Comparing all pairs of such a crowd is quadratic, and nearly all of them are within the threshold, which says the same
thing over and over. So a few hashes of each crowd are compared with all others first, which is linear and joins most of
them; then only those that are not yet in the crowd's largest cluster are compared with all. Nothing is missed by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from data_engine.dedup.bands import HASH_BITS
from data_engine.dedup.components import connected_components
from data_engine.dedup.hash_clusters import HashClusters

if TYPE_CHECKING:
    import duckdb

_CROWD = 250  # hashes that share a key
_SEEN = 8  # of them in the sample, at least: fewer may be chance
_ROUNDS = 6

_JOINED = """
create or replace temp table crowd as
select hashes.h, h & {mask}::ubigint as k, coalesce(labels.label, hashes.h) as label
from hashes left join labels using (h) where (h & {mask}::ubigint) in (select k from crowded)
"""
_SETTLED = "create or replace temp table settled as select k, mode(label) as label from crowd group by k"
_REST = """
create or replace temp table rest as
select crowd.* from crowd join settled using (k) where crowd.label <> settled.label
"""
# The hash whose bits are those that most of a crowd have is the middle of it; the one nearest to that is compared.
_MIDDLE = " + ".join(
    f"(2 * sum((h >> {bit}) & 1) > count(*))::ubigint * {1 << bit}::ubigint" for bit in range(HASH_BITS)
)
_STAR = """
with middles as (select k, {middle} as middle from {source} group by k),
stars as (select k, arg_min(h, bit_count(xor(h, middle))) as h from {source} join middles using (k) group by k)
select distinct greatest(crowd.label, of_star.label) as upper, least(crowd.label, of_star.label) as lower
from stars join crowd as of_star using (h) join crowd on crowd.k = stars.k
where crowd.label <> of_star.label and bit_count(xor(crowd.h, stars.h)) <= {threshold}
"""
_PAIRS = """
select distinct greatest(rest.label, crowd.label) as upper, least(rest.label, crowd.label) as lower
from rest join crowd using (k)
where rest.label <> crowd.label and bit_count(xor(rest.h, crowd.h)) <= {threshold}
"""


def crowded_keys(sample: np.ndarray, every: int, mask: int) -> np.ndarray:
    """Values of a key that about `_CROWD` hashes or more share, by a sample that holds one of `every` hashes."""
    keys, counts = np.unique(sample & np.uint64(mask), return_counts=True)
    return keys[counts >= max(_SEEN, _CROWD / every)]


def join_crowds(
    connection: duckdb.DuckDBPyConnection, mask: int, crowded: np.ndarray, threshold: int, clusters: HashClusters
) -> None:
    """Adds to `clusters` what is within the threshold among hashes of one crowded value of a key."""
    connection.register("crowded", pa.table({"k": crowded}))
    connection.register("labels", pa.table({"h": clusters.hashes, "label": clusters.labels}))
    connection.execute(_JOINED.format(mask=mask))
    connection.unregister("labels")
    found = _edges(connection, _STAR.format(source="crowd", middle=_MIDDLE, threshold=threshold))
    for _ in range(_ROUNDS):
        clusters.add(*found)
        _relabel(connection, *found)
        connection.execute(_SETTLED)
        connection.execute(_REST)
        found = _edges(connection, _STAR.format(source="rest", middle=_MIDDLE, threshold=threshold))
        if not len(found[0]):
            break
    clusters.add(*found)
    clusters.add(*_edges(connection, _PAIRS.format(threshold=threshold)))
    connection.unregister("crowded")


def _edges(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[np.ndarray, np.ndarray]:
    found = connection.execute(query).fetchnumpy()
    return np.asarray(found["upper"], np.uint64), np.asarray(found["lower"], np.uint64)


def _relabel(connection: duckdb.DuckDBPyConnection, left: np.ndarray, right: np.ndarray) -> None:
    if len(left):
        old, new = connected_components(left, right)
        connection.register("merged", pa.table({"label": old, "new": new}))
        connection.execute("update crowd set label = merged.new from merged where crowd.label = merged.label")
        connection.unregister("merged")
