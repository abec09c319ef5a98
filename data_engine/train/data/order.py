"""Who reads what, and when: an epoch's order as a function of (seed, epoch), cut among the ranks of a world.

Data lie in units (a tar, a slice of a dataset, a folder), which are cheap to read as a whole and dear to jump between.
Units are shuffled, entries are shuffled within their unit, and each rank takes one stretch of the result. So every rank
opens few units, the stretches differ by one entry at most, and any entry of the order is found without reading one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def stretch(total: int, rank: int, world: int) -> range:
    """The positions of an order of `total` entries that belong to a rank. Raises ValueError for a rank out of world."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of a world of {world}")
    return range(total * rank // world, total * (rank + 1) // world)


def shuffled_stretch(
    sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    skip: int = 0,
    window: int | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """(unit, positions in it as int64) for a rank, in order, less the first `skip` entries.

    sizes: entries of every unit. With a `window`, entries of a unit are shuffled among the `window` beside them only,
    so that the unit can be read from front to back.
    """
    mine = stretch(sum(sizes), rank, world)[skip:]
    before = 0
    for unit in np.random.default_rng([seed, epoch]).permutation(len(sizes)).tolist():
        size = sizes[unit]
        start, stop = max(mine.start - before, 0), min(mine.stop - before, size)
        before += size
        if start < stop:
            yield unit, _shuffled(np.random.default_rng([seed, epoch, unit]), size, window)[start:stop]


def _shuffled(rng: np.random.Generator, size: int, window: int | None) -> np.ndarray:
    if window is None or window >= size:
        return rng.permutation(size)
    starts = range(0, size, window)
    return np.concatenate([start + rng.permutation(min(window, size - start)) for start in starts])
