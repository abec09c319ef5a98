"""Images of a dataset that another one has too: training images that are in a test set.

Each is compared with the other dataset's images themselves, never through a third one: no chains here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from data_engine.dataset.reader import MaskDataset
from data_engine.dedup.nearest import NEAREST, find_nearest

if TYPE_CHECKING:
    import duckdb

_OTHERS = """
create table others as
select image_id, sha256, phash from other_images where status = 'ok' and phash is not null
"""
_ROWS = """
create table duplicates as
with same as (select sha256, min(image_id) as of from others group by sha256),
ids as (select phash, min(image_id) as of from others group by phash),
matched as (
    select images.image_id, coalesce(same.of, ids.of) as of, same.of is not null as exact, nearest.distance
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
    ((hashes,),) = connection.execute("select count(*) from mine").fetchall()
    connection.execute(f"create table nearest ({NEAREST})")
    keys = find_nearest(connection, threshold, on_key) if threshold is not None else 0
    connection.execute(_ROWS.format(or_near="" if threshold is None else "or nearest.of_h is not null"))
    names = ["others", "left_out", "exact", "near", "masks_left_out"]
    (found,) = connection.execute(_COUNTS).fetchall()
    counts = {name: int(value or 0) for name, value in zip(names, found, strict=True)}
    return counts | {"hashes": hashes, "keys": keys}


_COUNTS = """
select (select count(*) from others), count(*), count(*) filter (reason = 'exact'), count(*) filter (reason = 'near'),
    (select sum(n_masks) from images semi join duplicates using (image_id))
from duplicates
"""
