"""Images of a dataset that another one has too: training images that are in a test set.

Each is compared with the other dataset's images themselves, never through a third one: no chains here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from data_engine.dataset.reader import MaskDataset
from data_engine.dedup.bands import HASH_BITS, choose_bands, key_masks
from data_engine.dedup.near import SAMPLED

if TYPE_CHECKING:
    import duckdb

_OTHERS = """
create table others as
select image_id, sha256, phash from other_images where status = 'ok' and phash is not null
"""
# The nearest hash of the other dataset for each of ours, by (distance, hash): one row a hash, however many are near.
_FOUND = """
insert into found
select a.h, arg_min(b.h, {order}), min(bit_count(xor(a.h, b.h)))
from mine a join theirs b on (a.h & {mask}::ubigint) = (b.h & {mask}::ubigint)
where bit_count(xor(a.h, b.h)) <= {threshold} group by a.h
"""
_ORDER = "bit_count(xor(a.h, b.h))::uhugeint * 18446744073709551616::uhugeint + b.h"
_ROWS = """
create table duplicates as
with nearest as (select h, arg_min(of_h, distance::uhugeint * 18446744073709551616::uhugeint + of_h) as of_h from found
    group by h),
same as (select sha256, min(image_id) as of from others group by sha256),
ids as (select phash, min(image_id) as of from others group by phash),
matched as (
    select images.image_id, coalesce(same.of, ids.of) as of, same.of is not null as exact,
        bit_count(xor(images.phash, nearest.of_h)) as distance
    from images left join same using (sha256) left join nearest on nearest.h = images.phash
    left join ids on ids.phash = nearest.of_h
    where same.of is not null {or_near}
)
select image_id, dense_rank() over (order by of) - 1 as cluster_id, false as keep,
    case when exact then 'exact' else 'near' end as reason,
    case when exact then 0 else distance end::float as distance,
    of
from matched
"""


def find_leaks(
    connection: duckdb.DuckDBPyConnection,
    other: MaskDataset,
    threshold: int | None,
    on_key: Callable[[int, int], None] = lambda done, keys: None,
) -> dict[str, int]:
    """`images` -> `duplicates`: every image that `other` has too, with keep = false. Returns counts.

    `of` is the image of `other` with the same bytes, else the one with the nearest hash (of equally near
    hashes the smallest); of several images with it the smallest id.
    """
    connection.register("other_images", other.arrow("images"))
    connection.execute(_OTHERS)
    connection.unregister("other_images")
    connection.execute("create table mine as select distinct phash as h from images")
    connection.execute("create table theirs as select distinct phash as h from others")
    connection.execute("create table found (h ubigint, of_h ubigint, distance bigint)")
    ((mine, theirs),) = connection.execute(
        "select (select count(*) from mine), (select count(*) from theirs)"
    ).fetchall()
    for done, mask in enumerate(masks := _masks(connection, mine + theirs, threshold)):
        on_key(done, len(masks))
        connection.execute(_FOUND.format(order=_ORDER, mask=mask, threshold=threshold))
    connection.execute(_ROWS.format(or_near="" if threshold is None else "or nearest.of_h is not null"))
    names = ["others", "left_out", "exact", "near", "masks_left_out"]
    (found,) = connection.execute(_COUNTS).fetchall()
    counts = {name: int(value or 0) for name, value in zip(names, found, strict=True)}
    return counts | {"hashes": mine, "keys": len(masks)}


_COUNTS = """
select (select count(*) from others), count(*), count(*) filter (reason = 'exact'), count(*) filter (reason = 'near'),
    (select sum(n_masks) from images semi join duplicates using (image_id))
from duplicates
"""


def _masks(connection: duckdb.DuckDBPyConnection, total: int, threshold: int | None) -> list[int]:
    if threshold is None:
        return []
    if threshold == 0:
        return [(1 << HASH_BITS) - 1]
    every = max(1, total // SAMPLED)
    sampled = connection.execute(
        "select h from (from mine union all from theirs) where hash(h) % ? = 0", [every]
    ).fetchnumpy()
    return key_masks(threshold, choose_bands(np.asarray(sampled["h"], np.uint64), total, threshold))
