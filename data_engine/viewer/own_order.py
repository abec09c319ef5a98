"""In which order a person goes through the images that are left.

Somebody alone goes through them as they are stored. Of several, everybody has an order of their own, of blocks of
neighbours: so they seldom meet at an image, though each may have a server that knows nothing of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from data_engine.dataset.commits import CommitRecord

_BLOCK = 16  # images


class OwnOrder:
    """One person's order of all images. It stays the same while the dataset grows, but for what is new."""

    def __init__(self, records: Sequence[CommitRecord], who: str) -> None:
        block_keys, keys = [np.empty(0)], [np.empty(0)]
        for record in records:
            named = f"{who}\0{record.file}".encode("utf-8", "surrogatepass")
            rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "big"))
            count = record.totals.images
            block_keys.append(np.repeat(rng.random(-(-count // _BLOCK)), _BLOCK)[:count])
            keys.append(rng.random(count))  # or two who meet in a block would go on side by side
        self._order = np.lexsort((np.concatenate(keys), np.concatenate(block_keys)))

    def after(self, position: int | None) -> Iterator[int]:
        """All positions in this order, from the one after `position` on and round; None: from the beginning."""
        places = np.flatnonzero(self._order == position)
        first = int(places[0]) + 1 if position is not None and len(places) else 0
        return chain(map(int, self._order[first:]), map(int, self._order[:first]))


def as_stored(count: int, position: int | None) -> Iterator[int]:
    """All positions as they are stored, from the one after `position` on and round."""
    first = 0 if position is None else position + 1
    yield from range(first, count)
    yield from range(min(first, count))
