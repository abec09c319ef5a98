"""For each hash of one set the nearest one of another within a Hamming distance, by DuckDB joins.

Where both sets hold very many frames of one scene, nearly all pairs of them are within the distance, and comparing all
is quadratic. But of so many hashes that are near each other, most have one that is very near. So small distances come
first, whose keys are long and shared by few; what has found its nearest there is compared no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from data_engine.dedup.bands import cheapest_bands, key_masks
from data_engine.dedup.near import SAMPLED

if TYPE_CHECKING:
    import duckdb

NEAREST = "h ubigint, of_h ubigint, distance bigint"  # columns

_SIDES = ("mine", "theirs")
_WORTH = 8  # a distance comes before the threshold where it costs so many times less

# The smallest of these is the nearest one; of equally near ones the smallest hash.
_RANK = "bit_count(xor(a.h, b.h))::uhugeint * 18446744073709551616::uhugeint + b.h"
_FOUND = f"""
insert into found
select a.h, min({_RANK}) from mine a join theirs b on (a.h & {{mask}}::ubigint) = (b.h & {{mask}}::ubigint)
where bit_count(xor(a.h, b.h)) <= {{distance}} group by a.h
"""  # noqa: S608 - of this module
_EQUAL = "insert into nearest select h, h, 0 from mine semi join theirs using (h)"
_NEAREST = """
insert into nearest
select h, (rank & 18446744073709551615::uhugeint)::ubigint, (rank >> 64)::bigint
from (select h, min(rank) as rank from found group by h)
"""
_SETTLED = """
create or replace table unsettled as select h from mine anti join nearest using (h);
drop table mine; alter table unsettled rename to mine; delete from found
"""


def find_nearest(
    connection: duckdb.DuckDBPyConnection,
    threshold: int,
    on_key: Callable[[int, int], None] = lambda done, keys: None,
) -> int:
    """Fills `nearest`: a row for each hash of `mine` that has one of `theirs` within the threshold.

    Of equally near ones it is the smallest. `mine` and `theirs` are tables of distinct hashes `h`; `mine` keeps those
    without a neighbour. Returns how many keys were compared; on_key is told how far it is.
    """
    connection.execute("create table found (h ubigint, rank uhugeint)")
    connection.execute(_EQUAL)
    connection.execute(_SETTLED)
    done = 0
    for distance, masks in _passes(connection, threshold):
        for number, mask in enumerate(masks):
            on_key(done, done + len(masks) - number)
            connection.execute(_FOUND.format(mask=mask, distance=distance))
            done += 1
        connection.execute(_NEAREST)
        connection.execute(_SETTLED)
    return done


def _passes(connection: duckdb.DuckDBPyConnection, threshold: int) -> Iterator[tuple[int, list[int]]]:
    """(distance, the keys that find all pairs within it), ascending, the threshold at last.

    Each is chosen when those before it are done, by counting in a sample what is left to compare.
    """
    for distance in range(1, threshold + 1):
        pairs, total = _sampled(connection)
        if not total:
            return
        cost, bands = cheapest_bands(pairs, total, distance)
        if distance < threshold and _WORTH * cost > cheapest_bands(pairs, total, threshold)[0]:
            distance = threshold
            _, bands = cheapest_bands(pairs, total, threshold)
        yield distance, key_masks(distance, bands)
        if distance == threshold:
            return


def _sampled(connection: duckdb.DuckDBPyConnection) -> tuple[Callable[[int], float], int]:
    """(about how many pairs share a key, by its mask; hashes of both sides, 0 where one has none)"""
    counts = [connection.execute(f"select count(*) from {table}").fetchall()[0][0] for table in _SIDES]  # noqa: S608
    if not all(counts):
        return lambda mask: 0.0, 0
    samples = []
    for table, count in zip(_SIDES, counts, strict=True):
        every = max(1, count // (SAMPLED // 2))
        found = connection.execute(f"select h from {table} where hash(h) % ? = 0", [every]).fetchnumpy()  # noqa: S608
        samples.append((np.asarray(found["h"], np.uint64), float(every)))
    (ours, our_share), (others, their_share) = samples

    def pairs(mask: int) -> float:
        keys, counts = np.unique(ours & np.uint64(mask), return_counts=True)
        their_keys, their_counts = np.unique(others & np.uint64(mask), return_counts=True)
        _, at, there = np.intersect1d(keys, their_keys, assume_unique=True, return_indices=True)
        shared = counts[at].astype(np.float64) @ their_counts[there].astype(np.float64)
        return float(shared * our_share * their_share)

    return pairs, sum(counts)
