"""A replay is what a run with the same thresholds would have made: every row, in the same order."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pipeline.tiny_job import rows, write_tar

from data_engine.config import JobConfig, load_config
from data_engine.dataset.audit import PlannedCount, audit
from data_engine.dataset.commits import CommitRecord, Totals, read_commits
from data_engine.dataset.export.pieces import Slices
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.rejects import keeps_rejects
from data_engine.errors import DatasetError, PlanMismatch, UsageError
from data_engine.pipeline.job import generate
from data_engine.pipeline.originals import Originals
from data_engine.pipeline.plan import JobPlan, read_plan
from data_engine.replay.derived import _Writer
from data_engine.replay.run import OWN, try_settings
from data_engine.replay.select import replay
from data_engine.replay.settings import changed, settings_of_run
from data_engine.replay.stored import stored_images
from data_engine.replay.write import write_replay
from data_engine.report.pictures import draw_pictures
from data_engine.report.sheets import Pick, Place
from data_engine.train.data.dataset_masks import DatasetMasks
from data_engine.train.data.labelled import DataFilters
from data_engine.train.data.pool import Portion

PHOTOS = Path(__file__).parents[2] / "examples/photos"
# Quickstart's thresholds, which the starter model's masks pass; few points, and crops of them too.
BASE = ("masks.points_per_side=6", "masks.crop_n_layers=1", "output.images_per_commit=2", "run.device=cpu")
KEEP = ("output.keep_rejects=1", "output.reject_floor_iou=0.35", "output.reject_floor_stability=0.3")
OTHER = (
    "masks.pred_iou_thresh=0.4",
    "masks.stability_score_thresh=0.35",
    "masks.box_nms_thresh=0.85",
    "masks.crop_nms_thresh=0.6",
    "masks.min_mask_region_area=90",
)


def config(*overrides: str) -> JobConfig:
    return load_config("quickstart", [*BASE, *overrides])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real photographs, one of one colour, and one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("dog", "truck"):
        with Image.open(PHOTOS / f"{name}.jpg") as image:
            image.thumbnail((220, 220))
            image.save(folder / f"{name}.png")
    Image.new("RGB", (64, 48), "gray").save(folder / "gray.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset that keeps the rejects of all images."""
    output = str(tmp_path_factory.mktemp("run") / "out")
    generate(str(photos), output, config(*KEEP))
    return output


@pytest.fixture(scope="module")
def other(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same photographs at other thresholds, by the model."""
    output = str(tmp_path_factory.mktemp("other") / "out")
    generate(str(photos), output, config(*OTHER))
    return output


def opened(root: str) -> tuple[MaskDataset, JobPlan, JobConfig]:
    plan = read_plan(root)
    assert plan is not None
    return MaskDataset(root), plan, settings_of_run(plan, root)


def write(root: str, destination: Path, *overrides: str, **options: Any) -> Totals:
    dataset, plan, settings = opened(root)
    return write_replay(dataset, plan, settings, changed(settings, overrides), str(destination), **options)


def assert_whole(root: Path | str) -> None:
    plan = read_plan(str(root))
    assert plan is not None
    planned = [PlannedCount(shard.id, shard.images) for shard in plan.shards]
    report = audit(MaskDataset(str(root)), planned, plan.fingerprint)
    assert (report.findings, report.complete) == ([], True)


def test_keeping_rejects_changes_no_row(run: str, photos: Path, tmp_path: Path) -> None:
    generate(str(photos), str(tmp_path / "out"), config())
    assert rows(run) == rows(tmp_path / "out")
    assert_whole(run)
    record = MaskDataset(str(tmp_path / "out")).commits[0]
    assert record.rejects is None
    assert b"rejects" not in record.to_json()


def test_a_replay_is_a_run_with_its_thresholds(run: str, other: str, tmp_path: Path) -> None:
    totals = write(run, tmp_path / "replay", *OTHER)
    assert rows(tmp_path / "replay") == rows(other)
    assert_whole(tmp_path / "replay")
    assert totals == MaskDataset(other).totals
    plan, of_other = read_plan(str(tmp_path / "replay")), read_plan(other)
    assert plan is not None
    assert of_other is not None
    assert plan.config == of_other.config
    assert plan.replayed_from is not None
    assert plan.replayed_from["dataset"] == run
    with pytest.raises(PlanMismatch, match="replayed_from"):
        plan.refuse_unless_same(of_other, "here")


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("masks.pred_iou_thresh=0.55", "masks.suppression=mask"),
        ("masks.max_mask_area_fraction=0.1", "masks.min_mask_region_area=0", "masks.drop_small_masks=false"),
    ],
    ids=str,
)
def test_every_setting_after_the_model(run: str, photos: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    write(run, tmp_path / "replay", *overrides)
    generate(str(photos), str(tmp_path / "model"), config(*overrides))
    assert rows(tmp_path / "replay") == rows(tmp_path / "model")


def test_a_replay_that_was_stopped_goes_on_and_does_nothing_twice(run: str, other: str, tmp_path: Path) -> None:
    def stop(record: CommitRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(run, tmp_path / "replay", *OTHER, on_slice=stop)
    first = read_commits(str(tmp_path / "replay"))
    assert len(first) == 1
    assert not MaskDataset(str(tmp_path / "replay")).complete
    write(run, tmp_path / "replay", *OTHER)
    assert first[0] in MaskDataset(str(tmp_path / "replay")).commits
    assert rows(tmp_path / "replay") == rows(other)
    write(run, tmp_path / "replay", *OTHER)
    assert_whole(tmp_path / "replay")
    with pytest.raises(PlanMismatch, match="pred_iou_thresh"):
        write(run, tmp_path / "replay", "masks.pred_iou_thresh=0.45")
    with pytest.raises(UsageError, match="the dataset itself"):
        write(run, Path(run), *OTHER)


def test_two_at_once_write_one_dataset(run: str, other: str, tmp_path: Path) -> None:
    """Another process commits every slice while this one computes it."""

    def rival(record: CommitRecord) -> None:
        write(run, tmp_path / "replay", *OTHER)

    write(run, tmp_path / "replay", *OTHER, on_slice=rival)
    assert rows(tmp_path / "replay") == rows(other)
    assert_whole(tmp_path / "replay")
    for folder in ("images", "masks"):
        assert len(list((tmp_path / "replay" / folder).iterdir())) == len(read_commits(other))


def test_what_another_process_has_committed_is_not_made_again(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    make = _Writer.commit
    monkeypatch.setattr(
        _Writer, "commit", lambda self, source, first: made.append(source.file) or make(self, source, first)
    )

    def rival(record: CommitRecord) -> None:
        if len(made) == 1:
            write(run, tmp_path / "replay", *OTHER)

    write(run, tmp_path / "replay", *OTHER, on_slice=rival)
    assert sorted(made) == [record.file for record in read_commits(run)]
    assert len(made) > 1
    assert_whole(tmp_path / "replay")


def test_images_that_kept_no_rejects_are_left_out(photos: Path, other: str, tmp_path: Path) -> None:
    names = sorted(path.name for path in photos.iterdir())
    share = next(share / 100 for share in range(100) if 0 < sum(keeps_rejects(n, share / 100) for n in names) < 4)
    kept = [name for name in names if keeps_rejects(name, share)]
    generate(str(photos), str(tmp_path / "run"), config(*KEEP, f"output.keep_rejects={share}"))
    assert_whole(tmp_path / "run")
    write(str(tmp_path / "run"), tmp_path / "replay", *OTHER)
    assert_whole(tmp_path / "replay")
    images, masks = rows(other)
    expected = [row for row in images if row["image_id"] in kept], [row for row in masks if row["image_id"] in kept]
    assert rows(tmp_path / "replay") == expected
    plan = read_plan(str(tmp_path / "replay"))
    assert plan is not None
    assert [file.image_id for shard in plan.shards for file in shard.shard.files] == kept
    dataset = MaskDataset(tmp_path / "run")
    without = [record for record in dataset.commits if not set(dataset.image_ids(record)) & set(kept)]
    assert without
    for record in without:
        (tmp_path / "run" / record.masks.file).unlink()  # there is nothing to read it for
        assert list(stored_images(dataset, record, config().masks, share)) == []


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_pixels_of_a_part_of_the_images_are_found(kind: str, tmp_path: Path) -> None:
    """In a tar or a Parquet file, images that kept no rejects lie between those that did."""
    write_tar(tmp_path / "all.tar", 12)
    if kind == "parquet":
        with tarfile.open(tmp_path / "all.tar") as tar:
            data = [tar.extractfile(member).read() for member in tar]  # type: ignore[union-attr]
        pq.write_table(pa.table({"image": data}), tmp_path / "all.parquet", row_group_size=4)
    settings = config(*KEEP, "output.keep_rejects=0.4", "masks.points_per_side=3", "masks.crop_n_layers=0")
    root, replayed = str(tmp_path / "run"), tmp_path / "replay"
    generate(str(tmp_path / f"all.{kind}"), root, settings)
    write(root, replayed, "masks.pred_iou_thresh=0.4")
    dataset, originals = MaskDataset(replayed), Originals.of_dataset(str(replayed))
    assert 2 < len(dataset) < 10
    assert len(dataset.commits) > 3
    spans = Slices.of(dataset).whole
    read = [pair for span in spans for pair in originals.read(dataset, span)]
    assert [image.image_id for image, _ in read] == [image.image_id for image in dataset]
    assert all(data is not None for _, data in read)
    last = next(span for span in reversed(spans) if span.stop)
    ((_, alone),) = originals.read(dataset, replace(last, start=last.stop - 1))
    assert alone == read[-1][1]
    plan = read_plan(str(replayed))
    assert plan is not None
    places = {
        image.image_id: Place(record, position)
        for record in dataset.commits
        for position, image in enumerate(dataset.slice(record))
    }
    drawn = draw_pictures(dataset, plan, places, [Pick(image_id, 1) for image_id in places], 10**7)
    assert not [picture.missing for picture in drawn.values() if picture.missing]
    training = DatasetMasks(str(replayed), DataFilters())
    for unit, size in enumerate(training.sizes()):
        for example in training.read(Portion(unit, list(reversed(range(size))), seed=0, epoch=0)):
            assert example is None or example.pixels().size  # compared with the sha256 of its row


def test_what_cannot_be_replayed(run: str, other: str) -> None:
    with pytest.raises(DatasetError, match="keeps no rejects"):
        opened(other)
    _, _, settings = opened(run)
    for overrides, message in (
        (["masks.points_per_side=8"], r"masks\.points_per_side cannot be replayed"),
        (["masks.stability_score_offset=0.5"], "only the model can tell"),
        (["masks.pred_iou_thresh=0.3"], r"down to 0\.35"),
        (["masks.pred_iou_thresh=0"], r"down to 0\.35"),
        (["masks.stability_score_thresh=0.2"], "reject_floor_stability"),
    ):
        with pytest.raises(UsageError, match=message):
            changed(settings, overrides)
    assert changed(settings, ["masks.points_per_side=6", "masks.pred_iou_thresh=0.35"]).pred_iou_thresh == 0.35


def test_an_unfinished_dataset_is_tried_and_not_written(run: str, tmp_path: Path) -> None:
    dataset, plan, settings = opened(run)
    dataset.manifest = None
    assert try_settings(dataset, settings, {})[0].images == 3
    with pytest.raises(DatasetError, match="not complete"):
        write_replay(dataset, plan, settings, settings.masks, str(tmp_path / "replay"))
    assert not (tmp_path / "replay").exists()


def test_figures_are_those_of_the_datasets(run: str, other: str) -> None:
    dataset, _, settings = opened(run)
    own, tried = try_settings(dataset, settings, {"other": changed(settings, OTHER)})
    for outcome, of in ((own, dataset), (tried, MaskDataset(other))):
        totals = of.totals
        assert (outcome.images, outcome.masks) == (totals.images - totals.failed, totals.masks)
        assert outcome.counts.rejected_nms == totals.rejected_nms
        assert outcome.areas.quantile(0.5) == pytest.approx(_median(of.masks(["area"])), rel=0.02)
    assert (own.label, own.gained, own.lost) == (OWN, 0, 0)
    assert tried.masks == own.masks + tried.gained - tried.lost
    assert tried.gained > 0


def _median(areas: pa.Table) -> int:
    values = sorted(areas["area"].to_pylist())
    return values[(len(values) - 1) // 2]


def test_candidates_are_read_back_as_they_were(run: str) -> None:
    """At the settings of the run, all masks come out again, from every image."""
    dataset, _, settings = opened(run)
    masks = [
        len(replay(image, settings.masks).masks)
        for record in dataset.commits
        for image in stored_images(dataset, record, settings.masks, 1)
        if image.row["status"] == "ok"
    ]
    assert sum(masks) == dataset.totals.masks > 10
