"""Region hierarchies of photographs, found without labels: the targets that real images can give for nothing.

Superpixels (Felzenszwalb and Huttenlocher, 2004) are merged pair by pair, the most alike neighbours first, where alike
means: mean colour, distribution of colours, and a weak contour between them; small regions merge before large ones.
Cutting the sequence of merges at three counts gives nested regions: whole, part, subpart.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.segmentation import felzenszwalb

_BINS = 6  # of each Lab channel's histogram


@dataclass(frozen=True, slots=True)
class RegionTree:
    superpixels: np.ndarray  # HxW int32, 0..N-1
    merges: np.ndarray  # (N-1)x2 int32: superpixels whose regions become one, in order

    def labels(self, count: int) -> np.ndarray:
        """HxW int32: the image in `count` regions (or as many as there are superpixels)."""
        total = int(self.superpixels.max()) + 1
        parent = np.arange(total)
        for a, b in self.merges[: max(0, total - count)]:
            parent[_root(parent, b)] = _root(parent, a)
        return np.array([_root(parent, i) for i in range(total)], np.int32)[self.superpixels]

    def levels(self, counts: tuple[int, int, int]) -> np.ndarray:
        """3xHxW int32 region ids from 1, nested: counts from the coarsest cut to the finest."""
        return np.stack([self.labels(count) for count in counts]) + 1


def region_tree(image: np.ndarray) -> RegionTree:
    """image HxWx3 uint8 -> its hierarchy. About a second for 512x384."""
    superpixels = felzenszwalb(image, scale=25, sigma=0.7, min_size=25).astype(np.int32)
    lab = rgb2lab(ndimage.gaussian_filter(image, (0.7, 0.7, 0))).astype(np.float32)
    return RegionTree(superpixels, _merge_all(lab, superpixels))


class _Merger:
    """Regions as sums over their pixels, so that merging two is adding."""

    def __init__(self, lab: np.ndarray, superpixels: np.ndarray) -> None:
        ids = superpixels.ravel()
        count = int(ids.max()) + 1
        self.area = np.bincount(ids, minlength=count).astype(np.float64)
        self.colour = np.stack([np.bincount(ids, channel, count) for channel in lab.reshape(-1, 3).T], 1)
        low, span = np.array([0, -60, -60]), np.array([100, 120, 120])
        bins = np.clip((lab.reshape(-1, 3) - low) / span * _BINS, 0, _BINS - 1).astype(int)
        self.histogram = np.concatenate(
            [
                np.bincount(ids * _BINS + channel, minlength=count * _BINS).reshape(count, _BINS).astype(np.float64)
                for channel in bins.T
            ],
            1,
        )
        self.neighbours: list[dict[int, tuple[float, float]]] = [{} for _ in range(count)]  # length, summed contrast
        self._find_contours(lab, superpixels)

    def _find_contours(self, lab: np.ndarray, superpixels: np.ndarray) -> None:
        wide = ndimage.gaussian_filter(lab, (1.0, 1.0, 0))
        for axis in (0, 1):
            size = superpixels.shape[axis]
            a, b = (np.take(superpixels, range(s, size - 1 + s), axis) for s in (0, 1))
            # contrast across the edge is read two pixels to either side, where blur no longer hides it
            left, right = (np.clip(np.arange(size - 1) + s, 0, size - 1) for s in (-1, 2))
            contrast = np.linalg.norm(np.take(wide, left, axis) - np.take(wide, right, axis), axis=2)
            edge = a != b
            for i, j, value in zip(a[edge].tolist(), b[edge].tolist(), contrast[edge].tolist(), strict=True):
                length, total = self.neighbours[i].get(j, (0.0, 0.0))
                self.neighbours[i][j] = self.neighbours[j][i] = (length + 1, total + value)

    def cost(self, a: int, b: int) -> float:
        smaller, larger = sorted((self.area[a], self.area[b]))
        distance = np.linalg.norm(self.colour[a] / self.area[a] - self.colour[b] / self.area[b])
        ha, hb = self.histogram[a] / self.area[a], self.histogram[b] / self.area[b]
        spread = np.sum((ha - hb) ** 2 / (ha + hb + 1e-9)) / 6
        length, total = self.neighbours[a][b]
        alike = distance + 40 * spread + 1.2 * total / length
        return float(alike * (smaller / (1 + smaller / larger)) ** 0.35)

    def merge(self, a: int, b: int) -> None:
        for sums in (self.area, self.colour, self.histogram):
            sums[a] += sums[b]
        for other, (length, total) in self.neighbours[b].items():
            del self.neighbours[other][b]
            if other != a:
                known = self.neighbours[a].get(other, (0.0, 0.0))
                self.neighbours[a][other] = self.neighbours[other][a] = (known[0] + length, known[1] + total)
        self.neighbours[b] = {}


def _merge_all(lab: np.ndarray, superpixels: np.ndarray) -> np.ndarray:
    merger = _Merger(lab, superpixels)
    version = np.zeros(len(merger.area), int)
    alive = np.ones(len(merger.area), bool)
    heap = [(merger.cost(a, b), a, b, 0, 0) for a, near in enumerate(merger.neighbours) for b in near if a < b]
    heapq.heapify(heap)
    merges = []
    while heap:
        _, a, b, version_a, version_b = heapq.heappop(heap)
        if not (alive[a] and alive[b]) or version[a] != version_a or version[b] != version_b:
            continue
        merger.merge(a, b)
        merges.append((a, b))
        alive[b] = False
        version[a] += 1
        for other in merger.neighbours[a]:
            heapq.heappush(heap, (merger.cost(a, other), a, other, version[a], version[other]))
    return np.array(merges, np.int32).reshape(-1, 2)


def _root(parent: np.ndarray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
