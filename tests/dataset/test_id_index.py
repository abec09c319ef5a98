"""One image by id: few reads, however many slices there are; never another image, whatever was kept of the ids."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from dataset.small_dataset import build, mask_columns, one_slice
from test_reader import write_duplicates

from data_engine.dataset import id_index, id_table
from data_engine.dataset.id_table import IdTable, hashes_of
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError

IDS = [f"{shard}/{index}-{i}.jpg" for shard in "ab" for index in range(2) for i in range(3)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What even small datasets keep their index in."""
    monkeypatch.setenv("DATA_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(id_index, "WORTH_KEEPING", 1)
    return tmp_path / "cache" / "ids"


@pytest.fixture
def root(tmp_path):
    build(tmp_path / "masks")
    return tmp_path / "masks"


@pytest.fixture
def reads(monkeypatch):
    """How often each file of images was read."""
    counted: Counter[str] = Counter()
    original = MaskDataset._read

    def read(self, part, columns=None):
        counted[part.file] += 1
        return original(self, part, columns)

    monkeypatch.setattr(MaskDataset, "_read", read)
    return counted


def test_after_the_first_lookup_one_slice_is_read(root, reads):
    dataset = MaskDataset(root)
    assert dataset["b/1-2.jpg"].image_id == "b/1-2.jpg"
    for image_id in IDS:
        reads.clear()
        assert dataset[image_id].image_id == image_id
        assert reads.total() == 1


def test_an_id_that_is_not_there_reads_every_slice_once(root, reads):
    dataset = MaskDataset(root)
    for _ in range(2):
        with pytest.raises(KeyError, match="c/0-0"):
            dataset["c/0-0.jpg"]
    assert dict(reads) == {record.images.file: 1 for record in dataset.commits}


def test_another_process_reads_no_ids(root, reads, cache):
    assert MaskDataset(root)["b/1-2.jpg"]
    assert len(list(cache.iterdir())) == 1
    reads.clear()
    dataset = MaskDataset(root)
    assert [dataset[image_id].image_id for image_id in IDS] == IDS
    with pytest.raises(KeyError):
        dataset["c/0-0.jpg"]
    assert reads.total() == len(IDS)


def test_of_a_dataset_that_has_grown_the_new_slices_are_read(tmp_path, reads):
    records = build(tmp_path / "masks", complete=False)
    hidden = tmp_path / "masks" / records[1].file  # in the middle of the order
    content = hidden.read_bytes()
    hidden.unlink()
    with pytest.raises(KeyError):
        MaskDataset(tmp_path / "masks")["a/1-0.jpg"]
    hidden.write_bytes(content)
    reads.clear()
    dataset = MaskDataset(tmp_path / "masks")
    assert dataset["a/1-0.jpg"].image_id == "a/1-0.jpg"
    assert dict(reads) == {records[1].images.file: 2}  # its ids, and then the row
    assert [dataset[image_id].image_id for image_id in IDS] == IDS


def test_slices_that_are_no_more_are_forgotten(tmp_path, cache):
    """As when a dataset is deleted, and another one is made in its place."""
    records = build(tmp_path / "masks", complete=False)
    assert MaskDataset(tmp_path / "masks")["a/0-0.jpg"]
    (tmp_path / "masks" / records[0].file).unlink()
    dataset = MaskDataset(tmp_path / "masks")
    with pytest.raises(KeyError):
        dataset["a/0-0.jpg"]
    assert [dataset[image_id].image_id for image_id in IDS[3:]] == IDS[3:]


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
def test_a_kept_index_that_is_damaged_is_read_anew(root, cache, caplog, damage):
    assert MaskDataset(root)["b/1-2.jpg"]
    (file,) = cache.iterdir()
    data = bytearray(file.read_bytes())
    first = IdTable.load(file).hashes[:1].tobytes()
    data[data.index(first)] ^= 1  # a bit of a hash: the file can be read all the same
    file.write_bytes(bytes(data) if damage is None else damage)
    dataset = MaskDataset(root)
    assert [dataset[image_id].image_id for image_id in IDS] == IDS
    assert f"{file} is damaged" in caplog.text
    caplog.clear()
    assert MaskDataset(root)["b/1-2.jpg"]
    assert "damaged" not in caplog.text


def test_where_nothing_can_be_kept_it_is_said_once_and_lookups_go_on(root, cache, caplog):
    cache.parent.write_bytes(b"a file where the folder should be")
    dataset = MaskDataset(root)
    assert [dataset[image_id].image_id for image_id in IDS] == IDS
    assert caplog.text.count("cannot be written") == 1


@pytest.mark.parametrize("step", [1, 4096])
def test_ids_of_one_hash_are_told_apart(root, monkeypatch, step):
    monkeypatch.setattr(id_index, "_STEP", step)
    monkeypatch.setattr(id_index, "hashes_of", lambda ids: np.zeros(len(ids), np.uint64))
    dataset = MaskDataset(root)
    assert [dataset[image_id].image_id for image_id in reversed(IDS)] == IDS[::-1]
    with pytest.raises(KeyError, match="c/0-0"):
        dataset["c/0-0.jpg"]


def test_a_damaged_slice_is_in_the_way_of_nothing_that_is_elsewhere(root):
    dataset = MaskDataset(root)
    path = root / dataset.commits[0].images.file
    content = path.read_bytes()
    path.write_bytes(b"x" * 100)
    assert dataset["b/1-2.jpg"].image_id == "b/1-2.jpg"
    for image_id in ("a/0-0.jpg", "c/0-0.jpg"):  # it may hold them
        with pytest.raises(DatasetError, match=f"{path.name} is damaged"):
            dataset[image_id]
    path.write_bytes(content)
    assert dataset["a/0-0.jpg"].image_id == "a/0-0.jpg"


def test_many_are_read_slice_by_slice_in_the_order_of_the_dataset(root, reads):
    dataset = MaskDataset(root)
    wanted = ["b/1-0.jpg", "a/0-2.jpg", "b/1-2.jpg", "a/0-0.jpg", "a/0-1.jpg", "b/1-0.jpg"]
    list(dataset.get_many(wanted))
    reads.clear()
    images = list(dataset.get_many(wanted))
    assert [image.image_id for image in images] == sorted(set(wanted))
    assert dict(reads) == {dataset.commits[0].images.file: 1, dataset.commits[3].images.file: 1}
    whole = {image.image_id: image for image in dataset}
    assert all(image.row == whole[image.image_id].row for image in images)
    assert all(image.masks.equals(whole[image.image_id].masks) for image in images)
    assert list(dataset.get_many([])) == []


def test_many_with_one_that_is_not_there_give_none(root):
    seen = []
    with pytest.raises(KeyError, match="c/0-0"):
        seen.extend(MaskDataset(root).get_many(["a/0-0.jpg", "c/0-0.jpg"]))
    assert seen == []


def test_an_image_can_be_asked_for(root, reads):
    """`in` would iterate, compare images with the id, and say no."""
    dataset = MaskDataset(root)
    assert "b/1-2.jpg" in dataset
    assert "c/0-0.jpg" not in dataset
    assert 0 not in dataset
    reads.clear()
    assert "a/0-1.jpg" in dataset  # it failed, and has no masks
    assert reads.total() == 1
    with pytest.raises(TypeError, match="0 is no image id"):
        dataset[0]


def test_an_image_that_is_left_out_is_not_there(root):
    write_duplicates(root, ["a/0-0.jpg"])
    dataset = MaskDataset(root, deduplicated="found")
    assert "a/0-0.jpg" not in dataset
    with pytest.raises(KeyError, match="a/0-0"):
        list(dataset.get_many(["a/0-2.jpg", "a/0-0.jpg"]))


def test_ids_in_any_script_are_found(tmp_path):
    names = ["写真/猫.jpg", "E\u0301te\u0301.jpg", "\u00c9t\u00e9.jpg", "😀.png", "a\x00b.jpg", ""]
    one_slice(tmp_path, [(name, mask_columns(np.random.default_rng(0), 2)) for name in names])
    dataset = MaskDataset(tmp_path)
    assert [dataset[name].image_id for name in names] == names
    with pytest.raises(KeyError):
        dataset["\udcff.jpg"]


def test_masks_fewer_than_the_images_say_are_damage(tmp_path):
    one_slice(tmp_path, [(name, mask_columns(np.random.default_rng(0), 2)) for name in ("a.jpg", "b.jpg")], said=3)
    dataset = MaskDataset(tmp_path)
    assert len(dataset["a.jpg"]) == 3
    with pytest.raises(DatasetError, match="has fewer masks than its images say"):
        dataset["b.jpg"]


def test_threads_share_an_index(tmp_path, monkeypatch):
    """Each slice is read once, and none is lost that another one read meanwhile."""
    build(tmp_path / "masks", slices=8)
    monkeypatch.setattr(id_index, "_STEP", 2)
    original = MaskDataset.image_ids

    def image_ids(self, record):
        time.sleep(0.01)
        return original(self, record)

    dataset = MaskDataset(tmp_path / "masks")
    ids = [f"{shard}/{index}-{i}.jpg" for shard in "ab" for index in range(8) for i in range(3)]
    with monkeypatch.context() as patch, ThreadPoolExecutor(8) as pool:
        patch.setattr(MaskDataset, "image_ids", image_ids)
        assert [image.image_id for image in pool.map(dataset.__getitem__, ids[::-1])] == ids[::-1]
    dataset._ids.read_all()
    assert sorted(dataset._ids._table.slices) == sorted(record.images.sha256 for record in dataset.commits)
    assert pickle.loads(pickle.dumps(dataset))["a/0-0.jpg"].image_id == "a/0-0.jpg"


def test_what_was_extended_bit_by_bit_is_what_was_read_at_once(tmp_path):
    rng = np.random.default_rng(0)
    slices = [(f"{number}", hashes_of([f"{number}/{i}" for i in range(rng.integers(0, 5))])) for number in range(40)]
    table = IdTable.empty()
    for number in range(0, 40, 3):
        table = table.extended(slices[number : number + 3])
        table.save(tmp_path / "t.arrow")
        table = IdTable.load(tmp_path / "t.arrow")
    some = table.only({str(number) for number in range(0, 40, 2)})
    for name, found in (("all", table), ("some", some)):
        for sha256, hashes in slices:
            for row, value in enumerate(hashes):
                numbers, rows = found.places(np.array([value]))
                places = [(found.slices[number], at) for number, at in zip(numbers, rows.tolist(), strict=True)]
                assert places == ([(sha256, row)] if name == "all" or int(sha256) % 2 == 0 else [])


def test_without_a_home_nothing_is_kept(monkeypatch):
    monkeypatch.setenv("DATA_ENGINE_CACHE", "~nobody-of-this-name/cache")
    assert id_table.table_file("masks/") is None


def test_a_store_is_asked_three_times_for_an_image(root, bucket, s3_endpoint):
    import fsspec
    from integration.fault_proxy import FaultProxy

    fsspec.filesystem("s3").put(f"{root}/", f"{bucket}/masks/", recursive=True)
    with FaultProxy(s3_endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        dataset = MaskDataset(f"{bucket}/masks")
        with pytest.raises(KeyError):
            dataset["c/0-0.jpg"]
        for image_id in IDS:
            before = proxy.count()
            assert dataset[image_id].image_id == image_id
            assert proxy.count() - before <= 3
    fsspec.get_filesystem_class("s3").clear_instance_cache()
