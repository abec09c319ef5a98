"""Contact sheets: which images to look at, chosen by queries, so that no more than a handful is ever held."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.reader import MaskDataset

if TYPE_CHECKING:
    import duckdb

_FOREMOST = 20_000  # masks looked at for one mask an image: some images fill a list of worst masks on their own


@dataclass(frozen=True, slots=True)
class Pick:
    """An image on a sheet: all of its masks, or one of them."""

    image_id: str
    value: float  # what it was chosen for: masks, stability or share of the image
    mask_id: int | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """Images with something in common, in order."""

    key: str
    title: str
    picks: tuple[Pick, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image's row is."""

    record: CommitRecord
    position: int  # among the images of the slice


def choose_sheets(connection: duckdb.DuckDBPyConnection, size: int, seed: int) -> list[Sheet]:
    """The same dataset and seed give the same sheets; the same seed draws the same random images of two datasets."""
    shuffled = "order by md5($seed || ':' || image_id), image_id"
    return [
        _of_images(connection, "random", "Drawn at random", size, shuffled, seed),
        _of_images(connection, "most_masks", "Most masks", size, "order by n_masks desc, image_id"),
        _of_images(connection, "fewest_masks", "Fewest masks", size, "order by n_masks, image_id"),
        _of_masks(connection, "worst_stability", "Lowest stability", size, "stability_score", "asc"),
        _of_masks(connection, "largest_masks", "Largest masks", size, "area / (width::double * height)", "desc"),
    ]


def locate(dataset: MaskDataset, connection: duckdb.DuckDBPyConnection, ids: Iterable[str]) -> dict[str, Place]:
    """Where the rows of some images are. Reads the ids of their shards alone."""
    wanted = set(ids)
    query = "select image_id, shard from images where list_contains($ids, image_id)"
    shards = {shard for _, shard in connection.execute(query, {"ids": sorted(wanted)}).fetchall()} if wanted else set()
    places: dict[str, Place] = {}
    for record in dataset.commits:
        if record.shard in shards:
            for position, image_id in enumerate(dataset.image_ids(record)):
                if image_id in wanted:
                    places[image_id] = Place(record, position)
    return places


def _of_images(
    connection: duckdb.DuckDBPyConnection, key: str, title: str, size: int, order: str, seed: int | None = None
) -> Sheet:
    query = f"select image_id, n_masks from images where status = 'ok' {order} limit {size}"  # noqa: S608 - of this file
    rows = connection.execute(query, {} if seed is None else {"seed": str(seed)}).fetchall()
    return Sheet(key, title, tuple(Pick(image_id, count) for image_id, count in rows))


def _of_masks(connection: duckdb.DuckDBPyConnection, key: str, title: str, size: int, column: str, order: str) -> Sheet:
    rows = connection.execute(
        f"select image_id, value, mask_id from (select image_id, mask_id, {column} as value from masks "  # noqa: S608 - of this file
        f"order by value {order}, image_id, mask_id limit {_FOREMOST}) "
        f"qualify row_number() over (partition by image_id order by value {order}, mask_id) = 1 "
        f"order by value {order}, image_id limit {size}"
    ).fetchall()
    return Sheet(key, title, tuple(Pick(*row) for row in rows))
