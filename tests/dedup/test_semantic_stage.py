"""The semantic stage from photographs to a version: real files, a small SAM of random weights."""

import io
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps
from pipeline.tiny_job import config_for, picture, save_model
from typer.testing import CliRunner

from data_engine.cli import app
from data_engine.dataset.duplicates import read_version
from data_engine.dataset.reader import MaskDataset
from data_engine.dedup import kmeans, semantic
from data_engine.dedup.embedding import embed_originals, pooled_embeddings
from data_engine.dedup.run import deduplicate
from data_engine.dedup.settings import DedupSettings, SemanticSettings
from data_engine.errors import ConfigError, DatasetError, UsageError
from data_engine.pipeline.job import generate
from data_engine.sam.digests import sha256_of
from data_engine.sam.segmenter import load_segmenter

pytest.importorskip("duckdb")

COSINE = 0.95  # of these pictures under this model: the flipped copy has 0.97, the nearest different ones 0.93


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Twelve different pictures; one of them flipped, another once more and smaller, one file that is none."""
    folder = tmp_path_factory.mktemp("semantic")
    photos = folder / "photos"
    photos.mkdir()
    for i in range(12):
        (photos / f"{i:02d}.jpg").write_bytes(picture(i))
    first = Image.open(photos / "03.jpg")
    (photos / "flipped.jpg").write_bytes(jpeg(ImageOps.mirror(first.resize((71, 47)))))
    (photos / "flipped-copy.jpg").write_bytes((photos / "flipped.jpg").read_bytes())
    (photos / "smaller.jpg").write_bytes(jpeg(Image.open(photos / "05.jpg").resize((60, 40))))
    (photos / "broken.jpg").write_bytes(b"junk")
    model = save_model(folder / "tiny.safetensors")
    generate(str(photos), str(folder / "masks"), config_for(model, "output.images_per_commit=4"))
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A dataset of its own, with the originals where its plan says."""
    shutil.copytree(made / "masks", tmp_path / "masks")
    return tmp_path


def find(folder, *, semantic=True, **options):
    chosen = SemanticSettings(cosine=COSINE, device="cpu") if semantic else None
    return deduplicate(str(folder / "masks"), DedupSettings(threads=1, semantic=chosen), **options)


def rows_of(folder, version=True):
    table = MaskDataset(str(folder / "masks"), deduplicated=version).duplicates
    return {row["image_id"]: row for row in table.to_pylist()}


def stored(folder):
    return sorted((folder / "masks/_dedup").glob("embeddings-*.parquet"))


def test_a_flipped_copy_is_found_and_different_pictures_stay(folder):
    find(folder, semantic=False)
    assert rows_of(folder)["flipped.jpg"]["keep"] or rows_of(folder)["flipped-copy.jpg"]["keep"]
    counts = find(folder).counts
    found = rows_of(folder)
    gone = {name: (row["of"], row["reason"]) for name, row in found.items() if not row["keep"]}
    assert gone == {
        "flipped.jpg": ("03.jpg", "semantic"),
        "flipped-copy.jpg": ("03.jpg", "semantic"),
        "smaller.jpg": ("05.jpg", "near"),
    }
    assert found["flipped.jpg"]["distance"] == found["flipped-copy.jpg"]["distance"]
    assert 0 < found["flipped.jpg"]["distance"] < 1 - COSINE
    assert [row["cluster_id"] for row in found.values()] == [0, 0, 0, 1, 1]
    wanted = {"semantic": 2, "near": 1, "exact": 0, "left_out": 3, "clusters": 2, "largest_cluster": 3}
    assert counts == counts | wanted | {"semantic_compared": 13, "semantic_computed": 13, "semantic_missing": 0}
    assert counts["masks_left_out"] == sum(
        image.row["n_masks"] for image in MaskDataset(str(folder / "masks")) if image.image_id in gone
    )


def test_images_are_told_apart_after_they_were_sorted_into_clusters(folder, monkeypatch):
    find(folder)
    monkeypatch.setattr(kmeans, "IMAGES_PER_CLUSTER", 5)
    report = find(folder)
    assert report.parameters["semantic"]["k"] == 3
    assert rows_of(folder, "v2") == rows_of(folder, "v1")


def test_the_version_says_by_what(folder, made):
    find(folder)
    said = read_version(str(folder / "masks"), "v1").parameters["semantic"]
    assert said == {"model": sha256_of(made / "tiny.safetensors"), "cosine": COSINE, "k": 1}


def test_a_second_run_computes_nothing_anew_and_finds_the_same(folder, monkeypatch):
    find(folder)
    before = stored(folder)

    def refused(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr(semantic, "load_segmenter", refused)
    assert find(folder).counts["semantic_computed"] == 0
    assert stored(folder) == before
    assert rows_of(folder, "v2") == rows_of(folder, "v1")


def test_only_what_is_new_is_computed(folder):
    find(folder)
    (one,) = stored(folder)
    table = pq.read_table(one)
    assert table.schema.field("embedding").type.list_size == 32
    one.unlink()
    pq.write_table(table.slice(5), one)
    assert find(folder).counts["semantic_computed"] == 5
    assert pq.read_table(next(path for path in stored(folder) if path != one)).num_rows == 5
    assert rows_of(folder, "v2") == rows_of(folder, "v1")


def test_what_an_interrupted_run_computed_is_kept(folder, monkeypatch):
    def interrupted(*args):
        for done, batch in enumerate(embed_originals(*args)):
            if done == 4:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(semantic, "embed_originals", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find(folder)
    monkeypatch.undo()
    assert find(folder).counts["semantic_computed"] == 9
    assert len(stored(folder)) == 2


def test_in_an_object_store_embeddings_are_found_again(folder, bucket):
    import fsspec

    fsspec.filesystem("s3").put(str(folder / "masks"), f"{bucket}/masks", recursive=True)
    chosen = DedupSettings(threads=1, semantic=SemanticSettings(cosine=COSINE, device="cpu"))
    counts = [deduplicate(f"{bucket}/masks", chosen).counts for _ in range(2)]
    assert [(found["semantic_computed"], found["semantic"]) for found in counts] == [(13, 2), (0, 2)]


def test_a_dry_run_keeps_no_embeddings(folder):
    assert find(folder, dry_run=True).counts["semantic"] == 2
    assert not (folder / "masks/_dedup").exists()


def test_embeddings_of_another_job_do_not_count(folder):
    find(folder)
    (one,) = stored(folder)
    table = pq.read_table(one)
    said = table.schema.metadata[b"data_engine"].replace(b'"fingerprint": "', b'"fingerprint": "x')
    pq.write_table(table.replace_schema_metadata({b"data_engine": said}), one)
    assert find(folder).counts["semantic_computed"] == 13


def test_damaged_embeddings_are_named(folder):
    find(folder)
    (one,) = stored(folder)
    one.write_bytes(one.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"embeddings-.*damaged.*delete it"):
        find(folder)


@pytest.fixture
def own(tmp_path):
    """Originals that a test may take away."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        (photos / f"{i}.jpg").write_bytes(picture(i))
    model = save_model(tmp_path / "tiny.safetensors")
    generate(str(photos), str(tmp_path / "masks"), config_for(model))
    return tmp_path


def test_images_whose_originals_are_missing_are_passed_over_and_said(own):
    (own / "photos/1.jpg").unlink()
    (own / "photos/2.jpg").write_bytes(picture(9))
    shown = CliRunner().invoke(app, ["dedup", str(own / "masks"), "--semantic"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "2 images were not compared by their embeddings" in shown.stderr
    assert "embeddings compared 2" in " ".join(shown.stdout.split())
    assert pq.read_table(*stored(own))["image_id"].to_pylist() == ["0.jpg", "3.jpg"]


def test_a_dataset_without_originals_is_refused(own):
    shutil.rmtree(own / "photos")
    with pytest.raises(DatasetError, match=r"none of the originals of 4 images .*leave out --semantic"):
        find(own)
    assert list((own / "masks/_dedup").iterdir()) == []


def test_what_does_not_go_together_is_refused(folder):
    with pytest.raises(UsageError, match="leave out --engine ray"):
        DedupSettings(engine="ray", semantic=SemanticSettings())
    with pytest.raises(UsageError, match="leave out --semantic"):
        find(folder, against=str(folder / "masks"))
    with pytest.raises(ConfigError, match="cosine 1"):
        SemanticSettings(cosine=1.0)


def test_padding_is_no_part_of_an_embedding(made):
    """The mean over the cells of a wide image, which fill the frame's upper half."""
    segmenter = load_segmenter(made / "tiny.safetensors", "cpu")
    view = segmenter.prepare(np.random.default_rng(0).integers(0, 256, (64, 128, 3)).astype(np.uint8))
    features = segmenter.encode([view]).features
    expected = features[0, :, :4, :8].mean((1, 2))
    torch.testing.assert_close(torch.from_numpy(pooled_embeddings(segmenter, [view])[0]), expected)
