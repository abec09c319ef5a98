"""A dataset of masks for training with PyTorch: original images and their masks as tensors, streamed.

from torch.utils.data import DataLoader
from data_engine.dataset.torch_dataset import MaskImages
from data_engine.pipeline.originals import Originals

images = MaskImages("masks/", Originals.of_dataset("masks/"), shuffle=True)
for epoch in range(10):
    images.set_epoch(epoch)
    for batch in DataLoader(images, batch_size=4, num_workers=8, collate_fn=list): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from data_engine.dataset.export.filters import MaskFilter
from data_engine.dataset.export.pieces import Slices, exportable_rows
from data_engine.dataset.export.polygons import mask_patch
from data_engine.dataset.export.source import Source
from data_engine.dataset.reader import DatasetImage, MaskDataset
from data_engine.errors import DatasetError, UsageError

Item = dict[str, Any]
_LEAST_CHUNKS = 100  # of a dataset that is shuffled, where it has so many images: few runs would hardly mix
_Encoded = tuple[DatasetImage, bytes]


class MaskImages(IterableDataset[Item]):
    """The images that have masks, each once an epoch, over all ranks and all workers of a DataLoader.

    An item is a dictionary:
    image 3xHxW uint8 · masks NxHxW bool · boxes Nx4 float32 (x1, y1, x2, y2 in pixels, x2 and y2 exclusive) ·
    scores N float32 (predicted IoU) · stability_scores N float32 · mask_ids N int64 · image_id, uri str.

    Files are read in their order. Shuffling shuffles runs of `images_per_chunk` neighbours, which are shorter in a
    small dataset, and then images within a window of `shuffle_window`, before they are decoded. The order follows from
    seed, epoch and the numbers of ranks and workers alone. A tar is entered where a commit begins, so what lies between
    there and a run is read in vain: of tars, choose `images_per_chunk` near the images of a commit.
    """

    def __init__(
        self,
        root: str,
        source: Source,
        *,
        masks: MaskFilter | None = None,
        max_masks: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        images_per_chunk: int = 32,
        shuffle_window: int = 128,
        rank: int | None = None,
        world_size: int | None = None,
        even: bool = True,
        missing: Literal["raise", "skip"] = "raise",
        deduplicated: bool | str = False,
        transform: Callable[[Item], Any] | None = None,
    ) -> None:
        """source: the original files. masks: thresholds; an image of which no mask passes has N = 0.
        max_masks: a random choice of so many an image, another one each epoch; a mask takes a byte a pixel.
        rank, world_size: from torch.distributed where it is set up, else 0 of 1.
        even: ranks get equally many images, as DistributedDataParallel needs; up to world_size - 1 are left out.
        missing: what to do about an original that is gone or has changed. transform: applied to every item.

        Raises DatasetError (no dataset, no such version of duplicates) and UsageError (a rank that is none).
        """
        self.root, self.source, self.deduplicated = root, source, deduplicated
        self.filter, self.max_masks = masks or MaskFilter(), max_masks
        self.shuffle, self.seed, self.shuffle_window = shuffle, seed, shuffle_window
        self.images_per_chunk, self.even, self.missing, self.transform = images_per_chunk, even, missing, transform
        self.rank, self.world_size = _rank_and_size(rank, world_size)
        dataset = MaskDataset(root, deduplicated)
        if dataset.dedup is not None:
            self.deduplicated = dataset.dedup.version
        self._rows = exportable_rows(dataset)
        self._slices = Slices.of(dataset)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that persist must see it change

    def set_epoch(self, epoch: int) -> None:
        """Another order for another epoch; call it before each one, on every rank."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Images of this rank."""
        start, stop = self._of_rank()
        return stop - start

    def __iter__(self) -> Iterator[Any]:
        """Raises DatasetError for a missing original, unless it is to be skipped."""
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        start, stop = self._of_rank()
        count = stop - start
        first, last = start + count * index // workers, start + count * (index + 1) // workers
        rng = np.random.default_rng((self.seed, int(self._epoch), self.rank, index))
        encoded = self._encoded(first, last)
        for image, data in _shuffled(encoded, self.shuffle_window, rng) if self.shuffle else encoded:
            item = self._item(image, data, rng)
            yield self.transform(item) if self.transform is not None else item

    def _of_rank(self) -> tuple[int, int]:
        total, size = len(self._rows), self.world_size
        if self.even:
            return self.rank * (total // size), (self.rank + 1) * (total // size)
        return total * self.rank // size, total * (self.rank + 1) // size

    def _encoded(self, first: int, last: int) -> Iterator[_Encoded]:
        """Images number `first` to `last` in the order of the epoch."""
        dataset = MaskDataset(self.root, self.deduplicated)
        for start, stop in self._runs(first, last):
            rows = self._rows[start:stop]
            for span in self._slices.between(int(rows[0]), int(rows[-1]) + 1):
                for image, data in self.source.read(dataset, span):
                    if image.row["status"] == "failed" or not len(image):
                        continue
                    if data is not None:
                        yield image, data
                    elif self.missing == "raise":
                        raise DatasetError(
                            f"{image.row['uri']}: the original of {image.image_id} is gone or has changed since it was "
                            'masked; missing="skip" leaves such images out'
                        )

    def _runs(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The parts of the chunks that hold numbers `first` to `last`, when chunks follow in the order of the epoch.

        Without shuffling it is one run: a tar that is entered again for every chunk is read many times over.
        """
        if not self.shuffle:
            if first < last:
                yield first, last
            return
        total = len(self._rows)
        size = min(self.images_per_chunk, max(total // _LEAST_CHUNKS, 1))
        chunks = np.arange(-(-total // size))
        np.random.default_rng((self.seed, int(self._epoch))).shuffle(chunks)  # the same for all ranks and workers
        position = 0
        for chunk in chunks.tolist():
            start = chunk * size
            length = min(size, total - start)
            begin, end = max(first - position, 0), min(last - position, length)
            if begin < end:
                yield start + begin, start + end
            position += length

    def _item(self, image: DatasetImage, data: bytes, rng: np.random.Generator) -> Item:
        pixels = self.source.decoder.decode(data)
        table = self.filter.apply(image).masks
        if self.max_masks is not None and table.num_rows > self.max_masks:
            table = table.take(np.sort(rng.choice(table.num_rows, self.max_masks, replace=False)))
        rows = table.to_pylist()
        masks = np.zeros((len(rows), *pixels.shape[:2]), bool)
        for mask, row in zip(masks, rows, strict=True):
            patch, (y, x) = mask_patch(row)
            mask[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
        x, y, w, h = (table[f"bbox_{side}"].to_numpy() for side in "xywh")
        return {
            "image": torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
            "masks": torch.from_numpy(masks),
            "boxes": torch.from_numpy(np.stack([x, y, x + w, y + h], 1).astype(np.float32)),
            "scores": torch.tensor(table["predicted_iou"].to_pylist(), dtype=torch.float32),
            "stability_scores": torch.tensor(table["stability_score"].to_pylist(), dtype=torch.float32),
            "mask_ids": torch.tensor(table["mask_id"].to_pylist(), dtype=torch.int64),
            "image_id": image.image_id,
            "uri": image.row["uri"],
        }


def _shuffled(items: Iterator[_Encoded], window: int, rng: np.random.Generator) -> Iterator[_Encoded]:
    """Each next one is drawn from the `window` items that were read last and not drawn yet."""
    held: list[_Encoded] = []
    for item in items:
        held.append(item)
        if len(held) >= window:
            yield held.pop(int(rng.integers(len(held))))
    while held:
        yield held.pop(int(rng.integers(len(held))))


def _rank_and_size(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise UsageError(f"rank={rank} and world_size={world_size}: give both, or neither")
    if rank is None or world_size is None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    if not 0 <= rank < world_size:
        raise UsageError(f"rank={rank} of world_size={world_size}: ranks count from 0")
    return rank, world_size
