"""Worker processes of a data loader are ranks of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import DataLoader, IterableDataset
from train.labelled_folders import sa1b_files, write_folder

from data_engine.train.data.labelled import DataFilters, TrainingData, open_training_data, share_of_worker


class Names(IterableDataset):
    def __init__(self, data: TrainingData, rank: int, world: int) -> None:
        self.data, self.rank, self.world = data, rank, world

    def __iter__(self) -> Iterator[str]:
        rank, world = share_of_worker(self.rank, self.world)
        for image in self.data.epoch(0, seed=0, rank=rank, world=world):
            yield image.image_id


def test_every_image_once_over_ranks_and_their_workers(tmp_path: Path) -> None:
    data = open_training_data(str(write_folder(tmp_path, sa1b_files(range(11)))), DataFilters())
    seen = []
    for rank in range(2):
        seen += list(DataLoader(Names(data, rank, 2), batch_size=None, num_workers=2))
    assert sorted(seen) == sorted(f"sa_{number}.jpg" for number in range(11))
    assert share_of_worker(1, 3) == (1, 3)
