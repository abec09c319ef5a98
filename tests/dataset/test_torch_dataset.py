"""A dataset for PyTorch: right tensors, each image once over workers and ranks, the same order for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataset.exported import OnePicture, build_blobs, leave_out, with_masks
from torch.utils.data import DataLoader

from data_engine.dataset.export.filters import MaskFilter
from data_engine.dataset.torch_dataset import MaskImages
from data_engine.errors import DatasetError, UsageError


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return build_blobs(tmp_path / "masks", monkeypatch)


def ids(items):
    return [item["image_id"] for item in items]


def test_items_are_the_image_and_its_masks(dataset):
    source = OnePicture()
    for item, image in zip(MaskImages(dataset.root, source), with_masks(dataset), strict=True):
        assert item["image_id"] == image.image_id
        assert (item["image"].dtype, item["masks"].dtype) == (torch.uint8, torch.bool)
        np.testing.assert_array_equal(item["image"].permute(1, 2, 0), source.decoder.decode(source.data))
        np.testing.assert_array_equal(item["masks"], np.stack([image.mask(i) for i in range(len(image))]))
        for mask, box in zip(item["masks"].numpy(), item["boxes"].tolist(), strict=True):
            ys, xs = np.nonzero(mask)
            assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert item["scores"].tolist() == image.masks["predicted_iou"].to_pylist()
        assert item["stability_scores"].tolist() == image.masks["stability_score"].to_pylist()


def test_two_workers_of_a_loader_read_each_image_once(dataset):
    images = MaskImages(dataset.root, OnePicture(), shuffle=True, images_per_chunk=2)
    loader = DataLoader(images, batch_size=3, num_workers=2, collate_fn=list, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        images.set_epoch(epoch)
        epochs.append([name for batch in loader for name in ids(batch)])
    for epoch in epochs:
        assert sorted(epoch) == sorted(ids({"image_id": image.image_id} for image in with_masks(dataset)))
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("images_per_chunk", [1, 3, 100])
def test_ranks_share_the_images(dataset, shuffle, world_size, images_per_chunk):
    for even in (False, True):
        ranks = [
            MaskImages(
                dataset.root,
                OnePicture(),
                shuffle=shuffle,
                images_per_chunk=images_per_chunk,
                rank=rank,
                world_size=world_size,
                even=even,
            )
            for rank in range(world_size)
        ]
        read = [ids(rank) for rank in ranks]
        assert [len(rank) for rank in ranks] == list(map(len, read))
        together = [name for rank in read for name in rank]
        assert len(set(together)) == len(together)
        if even:
            assert {len(rank) for rank in read} == {8 // world_size}
        else:
            assert len(together) == 8


def test_the_order_follows_from_seed_and_epoch(dataset):
    def order(seed, epoch):
        images = MaskImages(dataset.root, OnePicture(), shuffle=True, seed=seed, images_per_chunk=1)
        images.set_epoch(epoch)
        return ids(images)

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    in_order = ids(MaskImages(dataset.root, OnePicture()))
    assert in_order == [image.image_id for image in with_masks(dataset)]


def test_filters_and_a_choice_of_masks(dataset):
    images = MaskImages(dataset.root, OnePicture(), masks=MaskFilter(min_iou=0.9))
    for item in images:
        scores = [score for score in dataset[item["image_id"]].masks["predicted_iou"].to_pylist() if score >= 0.9]
        assert item["scores"].tolist() == scores
        assert item["masks"].shape[0] == item["boxes"].shape[0] == len(scores)
    assert len(list(images)) == 8  # an image without such masks stays, so that ranks stay even
    few = MaskImages(dataset.root, OnePicture(), max_masks=2)
    for item in few:
        image = dataset[item["image_id"]]
        assert len(item["masks"]) == min(2, len(image))
        for mask, mask_id in zip(item["masks"], item["mask_ids"].tolist(), strict=True):
            np.testing.assert_array_equal(mask, image.mask(mask_id))


def test_duplicates_are_left_out(dataset):
    leave_out(dataset, "v1", ["a/0-2.jpg", "b/1-0.jpg"])
    images = MaskImages(dataset.root, OnePicture(), deduplicated=True, images_per_chunk=3, shuffle=True)
    kept = {image.image_id for image in with_masks(dataset)} - {"a/0-2.jpg", "b/1-0.jpg"}
    assert sorted(ids(images)) == sorted(kept)
    assert len(images) == 6


def test_a_missing_original_is_an_error_or_skipped(dataset):
    source = OnePicture(missing=frozenset({"b/0-2.jpg"}))
    with pytest.raises(DatasetError, match=r"b/0-2\.jpg.*skip"):
        list(MaskImages(dataset.root, source))
    assert len(list(MaskImages(dataset.root, source, missing="skip"))) == 7


def test_items_can_be_transformed(dataset):
    images = MaskImages(dataset.root, OnePicture(), transform=lambda item: item["masks"].shape[0])
    assert list(images) == [len(image) for image in with_masks(dataset)]


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2), (2, 2), (-1, 2)])
def test_ranks_that_cannot_be(dataset, rank, world_size):
    with pytest.raises(UsageError, match=f"rank={rank}"):
        MaskImages(dataset.root, OnePicture(), rank=rank, world_size=world_size)


def test_without_shuffling_every_slice_is_entered_once(dataset):
    """A tar cannot be entered in the midst of a slice."""
    entered = []

    class Watched(OnePicture):
        def read(self, dataset, span):
            entered.append(span.record.file)
            return super().read(dataset, span)

    assert ids(MaskImages(dataset.root, Watched(), images_per_chunk=1)) == [
        image.image_id for image in with_masks(dataset)
    ]
    assert entered == [record.file for record in dataset.commits]
