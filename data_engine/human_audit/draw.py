"""Drawing a sample in one stream over the dataset.

Every mask has a random number that depends on the seed, its image's id and its own id alone; the masks with the
smallest numbers are the sample. So each set of masks is as likely as any other, the draw does not depend on the order
or the cut of the files, and only the smallest so far are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.reader import MaskDataset
from data_engine.human_audit.design import Design, StratumCount, allocate
from data_engine.human_audit.scan import mask_starts, read_columns, side_by_side
from data_engine.human_audit.score_bins import COLUMNS, ScoreBins, ScoreHistogram

OnSlice = Callable[[CommitRecord], None]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Drawn masks, in the order in which they are shown; one array entry each."""

    record: np.ndarray  # index into the dataset's commits
    image: np.ndarray  # position of the image in its slice
    mask_id: np.ndarray
    probability: np.ndarray  # of being drawn

    def __len__(self) -> int:
        return len(self.record)


@dataclass(frozen=True, slots=True)
class Draw:
    chosen: Chosen
    strata: tuple[StratumCount, ...]  # one where the masks were drawn from the whole run
    images_with_masks: int
    images_drawn: int


def histogram(dataset: MaskDataset, on_slice: OnSlice = lambda record: None) -> ScoreHistogram:
    """The scores of all masks. Reads two columns."""
    found = ScoreHistogram()
    columns = list(COLUMNS.values())
    tables = side_by_side(lambda record: read_columns(dataset, record.masks, columns), dataset.commits)
    for record, table in zip(dataset.commits, tables, strict=True):
        found.add(*(table[column].to_numpy() for column in columns))
        on_slice(record)
    return found


def draw(
    dataset: MaskDataset,
    design: Design,
    bins: ScoreBins,
    cells: list[list[int]],
    on_slice: OnSlice = lambda record: None,
) -> Draw:
    """Draws what `design` says. cells: masks by [stability bin][IoU bin]."""
    if design.unit == "images":
        return _draw_images(dataset, design, on_slice)
    return _draw_masks(dataset, design, bins, cells, on_slice)


def image_keys(image_ids: Sequence[str], seed: int) -> np.ndarray:
    """Random numbers, uint64, one an image id: the same for the same id and seed, whatever else there is."""
    start = hashlib.blake2b(str(seed).encode(), digest_size=8, person=b"human audit")

    def key(image_id: str) -> int:
        state = start.copy()
        state.update(b"\0" + image_id.encode("utf-8", "surrogatepass"))
        return int.from_bytes(state.digest(), "little")

    return np.array([key(image_id) for image_id in image_ids], np.uint64)


def mix(numbers: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, one to one and without visible order: the finalizer of SplitMix64.

    Steele, Lea & Flood (2014), "Fast splittable pseudorandom number generators", OOPSLA.
    """
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def mask_keys(of_image: np.ndarray, mask_id: np.ndarray) -> np.ndarray:
    """Random numbers, uint64, one a mask: SplitMix64's stream that starts at the number of its image."""
    return mix(of_image + (mask_id.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Masks or images that may be drawn. 64-bit keys tie too rarely to matter."""

    key: np.ndarray
    stratum: np.ndarray
    record: np.ndarray
    image: np.ndarray
    mask_id: np.ndarray

    def take(self, which: np.ndarray) -> _Candidates:
        return _Candidates(*(getattr(self, name)[which] for name in self.__slots__))

    def plus(self, other: _Candidates) -> _Candidates:
        return _Candidates(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in self.__slots__))

    def smallest(self, counts: Sequence[int]) -> _Candidates:
        """The counts[h] smallest keys of each stratum h, in ascending order."""
        order = np.lexsort((self.key, self.stratum))
        of_stratum = self.stratum[order]
        rank = np.arange(len(order)) - np.searchsorted(of_stratum, of_stratum)
        return self.take(order[rank < np.array(counts)[of_stratum]])


_NONE = _Candidates(
    np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
)


def _draw_masks(
    dataset: MaskDataset, design: Design, bins: ScoreBins, cells: list[list[int]], on_slice: OnSlice
) -> Draw:
    strata = _Strata(design, cells)
    counts = allocate(strata.populations.tolist(), design.size, design.allocation)

    def candidates(job: tuple[int, CommitRecord]) -> tuple[_Candidates, int]:
        index, record = job
        ids, starts = mask_starts(dataset, record)
        image = np.repeat(np.arange(len(ids)), np.diff(starts))
        mask_id = np.arange(starts[-1]) - starts[image]
        stratum = np.zeros(len(image), np.int64)
        if design.stratify:
            scores = read_columns(dataset, record.masks, list(COLUMNS.values()))
            stratum = strata.of(*bins.of(*(scores[column].to_numpy() for column in COLUMNS.values())))
        key = mask_keys(image_keys(ids, design.seed)[image], mask_id)
        found = _Candidates(key, stratum, np.full(len(key), index), image, mask_id)
        return found.smallest(counts), int((np.diff(starts) > 0).sum())

    best, images = _smallest_of_all(dataset, candidates, counts, on_slice)
    # An order of its own: by key alone, strata of which little is drawn would come first.
    best = best.take(np.argsort(mix(best.key ^ _GOLDEN), kind="stable"))
    probability = (np.array(counts) / np.maximum(strata.populations, 1))[best.stratum]
    drawn = len({*zip(best.record.tolist(), best.image.tolist(), strict=True)})
    return Draw(Chosen(best.record, best.image, best.mask_id, probability), strata.counted(counts), images, drawn)


def _draw_images(dataset: MaskDataset, design: Design, on_slice: OnSlice) -> Draw:
    def candidates(job: tuple[int, CommitRecord]) -> tuple[_Candidates, int]:
        index, record = job
        ids, starts = mask_starts(dataset, record)
        masks = np.diff(starts)
        image = np.flatnonzero(masks)
        key = image_keys([ids[i] for i in image], design.seed)
        found = _Candidates(key, np.zeros(len(key), np.int64), np.full(len(key), index), image, masks[image])
        return found.smallest([design.size]), len(image)

    best, images = _smallest_of_all(dataset, candidates, [design.size], on_slice)
    masks = best.mask_id  # of an image as a candidate: how many it has
    which = np.repeat(np.arange(len(masks)), masks)
    mask_id = np.arange(len(which)) - (np.cumsum(masks) - masks)[which]
    order = np.lexsort((mask_keys(best.key[which], mask_id), which))
    which, mask_id = which[order], mask_id[order]
    probability = np.full(len(which), len(masks) / max(images, 1))
    run = StratumCount(stability_bin=None, iou_bin=None, population=dataset.totals.masks, sampled=len(which))
    return Draw(Chosen(best.record[which], best.image[which], mask_id, probability), (run,), images, len(masks))


def _smallest_of_all(
    dataset: MaskDataset,
    candidates: Callable[[tuple[int, CommitRecord]], tuple[_Candidates, int]],
    counts: Sequence[int],
    on_slice: OnSlice,
) -> tuple[_Candidates, int]:
    """The counts[h] smallest candidates of each stratum h of the dataset, and the sum of what comes with them."""
    best, total = _NONE, 0
    found = side_by_side(candidates, enumerate(dataset.commits))
    for record, (of_slice, number) in zip(dataset.commits, found, strict=True):
        best, total = best.plus(of_slice).smallest(counts), total + number
        on_slice(record)
    return best, total


class _Strata:
    """The parts of the run that are drawn from separately: cells of the scores' bins, or all of them in one."""

    def __init__(self, design: Design, cells: list[list[int]]) -> None:
        """cells: masks by [stability bin][IoU bin]."""
        self._by_stability, self._by_iou = "stability" in design.stratify, "iou" in design.stratify
        self._width = len(cells[0]) if self._by_iou else 1
        summed = tuple(axis for axis, by in enumerate((self._by_stability, self._by_iou)) if not by)
        self.populations: np.ndarray = np.array(cells).sum(axis=summed).reshape(-1)

    def of(self, stability_bin: np.ndarray, iou_bin: np.ndarray) -> np.ndarray:
        """The numbers of the strata of masks."""
        return stability_bin * self._by_stability * self._width + iou_bin * self._by_iou

    def counted(self, sampled: Sequence[int]) -> tuple[StratumCount, ...]:
        return tuple(
            StratumCount(
                stability_bin=number // self._width if self._by_stability else None,
                iou_bin=number % self._width if self._by_iou else None,
                population=int(population),
                sampled=count,
            )
            for number, (population, count) in enumerate(zip(self.populations, sampled, strict=True))
        )
