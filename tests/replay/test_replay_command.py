from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
from pipeline.tiny_job import config_for, rows, save_model, write_photos
from typer.testing import CliRunner, Result

from data_engine.cli import app
from data_engine.pipeline.job import generate

KEEP = ("masks.pred_iou_thresh=0.02", "output.keep_rejects=1", "output.reject_floor_iou=0")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("replay")
    model = save_model(root / "tiny.safetensors")
    generate(str(write_photos(root / "photos", 3)), str(root / "out"), config_for(model, *KEEP))
    generate(str(root / "photos"), str(root / "none"), config_for(model))
    return str(root / "out")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["replay", *arguments])


def test_tables_and_json_say_the_same(output: str) -> None:
    sweep = "masks.box_nms_thresh=0.5:0.9:0.2"
    shown = invoke(output, "--sweep", sweep)
    assert shown.exit_code == 0, shown.output
    found = json.loads(invoke(output, "--sweep", sweep, "--json").stdout)
    assert [row["settings"] for row in found] == ["as run", "0.5", "0.7", "0.9"]
    assert all(row["images"] == 3 for row in found)
    assert found[1]["masks"] < found[0]["masks"]
    first = [line.split() for line in shown.stdout.splitlines()]
    assert ["0.5", f"{found[1]['masks']:,}", f"{round(found[1]['masks_an_image'], 1):,}"] in [row[:3] for row in first]
    assert "3 of 3 images" in shown.stderr


def test_a_destination_gets_a_dataset(output: str, tmp_path: Path) -> None:
    destination = str(tmp_path / "stricter")
    written = invoke(output, destination, "--set", "masks.box_nms_thresh=0.6")
    assert written.exit_code == 0, written.output
    assert f"{destination}: 3 images, {len(rows(destination)[1]):,} masks" in written.stdout
    audited = CliRunner().invoke(app, ["audit", destination])
    assert audited.exit_code == 0, audited.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "masks.points_per_side=9"), "cannot be replayed"),
        (("DEST", "--sweep", "masks.box_nms_thresh=0.5,0.6"), "do not go with DEST"),
        (("--sweep", "masks.pred_iou_tresh=0.5"), "did you mean 'pred_iou_thresh'"),
    ],
)
def test_wrong_requests(output: str, arguments: tuple[str, ...], message: str) -> None:
    failed = invoke(output, *arguments)
    assert failed.exit_code != 0
    assert message in str(failed.exception)
    assert "keeps no rejects" in str(invoke(f"{output}/../none").exception)


def test_from_a_store_to_a_store(output: str, bucket: str, tmp_path: Path) -> None:
    fsspec.filesystem("s3").put(output, f"{bucket}/run", recursive=True)
    written = invoke(f"{bucket}/run", f"{bucket}/stricter", "--set", "masks.box_nms_thresh=0.6")
    assert written.exit_code == 0, written.output
    assert invoke(output, str(tmp_path / "here"), "--set", "masks.box_nms_thresh=0.6").exit_code == 0
    assert rows(f"{bucket}/stricter") == rows(tmp_path / "here")
    audited = CliRunner().invoke(app, ["audit", f"{bucket}/stricter"])
    assert audited.exit_code == 0, audited.output
