"""From clusters to rows: which image of each stays, and what every other one is a duplicate of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    import duckdb

    from data_engine.dedup.hash_clusters import HashClusters
    from data_engine.dedup.settings import DedupSettings

# Images that share their hash with another one, or whose hash has a neighbour.
_MEMBERS = """
create table members as
with labelled as (
    select images.*, coalesce(labels.label, phash) as cluster from images left join labels on phash = labels.h
)
select * from labelled where cluster in (select cluster from labelled group by cluster having count(*) > 1)
"""

_ROWS = """
create table duplicates as
with ranked as (
    select *, row_number() over (partition by {cluster} order by pixels desc, n_masks desc, image_id) as place,
        count(*) over (partition by {cluster}) as size
    from members
),
kept as (
    select {cluster} as cluster, image_id, sha256, phash, row_number() over (order by image_id) - 1 as cluster_id
    from ranked where place = 1 and size > 1
)
select
    ranked.image_id,
    kept.cluster_id,
    place = 1 as keep,
    case when place = 1 then null when ranked.sha256 = kept.sha256 then 'exact' else 'near' end as reason,
    case when place = 1 then null else bit_count(xor(ranked.phash, kept.phash)) end::float as distance,
    kept.image_id as of
from ranked join kept on ranked.{cluster} = kept.cluster
"""


# "chained": farther from the kept image than the threshold, and linked to it by others in between.
_COUNTS = """
select count(*) filter (keep),
    (select max(size) from (select count(*) as size from duplicates group by cluster_id)),
    count(*) filter (not keep), (select count(*) - count(distinct sha256) from members),
    count(*) filter (reason = 'exact'), count(*) filter (reason = 'near'),
    count(*) filter (reason = 'near' and distance > ?),
    (select sum(n_masks) from members semi join (from duplicates where not keep) as gone using (image_id))
from duplicates
"""


def add_members(connection: duckdb.DuckDBPyConnection, clusters: HashClusters) -> None:
    """`images` -> `members`, those of clusters of two and more."""
    labels = pa.table({"h": clusters.hashes, "label": clusters.labels})
    connection.register("found", labels)
    connection.execute("create table labels as select h, label from found")
    connection.unregister("found")
    connection.execute(_MEMBERS)


def add_duplicates(connection: duckdb.DuckDBPyConnection, exact_only: bool) -> None:
    """`members` -> `duplicates`, with the columns of the schema DUPLICATES.

    The largest image of a cluster stays; of equally large ones that with the most masks, then the smallest id.
    exact_only: a cluster is what has the same bytes.
    """
    connection.execute(_ROWS.format(cluster="sha256" if exact_only else "cluster"))


def counts_of(connection: duckdb.DuckDBPyConnection, settings: DedupSettings) -> dict[str, int]:
    """What is in `duplicates`, in figures."""
    names = ["clusters", "largest_cluster", "left_out", "same_bytes", "exact", "near", "chained", "masks_left_out"]
    (found,) = connection.execute(_COUNTS, [settings.threshold or 0]).fetchall()
    return {name: int(value or 0) for name, value in zip(names, found, strict=True)}
