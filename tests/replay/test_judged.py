from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import pytest
from pipeline.tiny_job import config_for, save_model, write_photos
from typer.testing import CliRunner

from data_engine.cli import app
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError
from data_engine.human_audit.answers import Answer, AnswerSession
from data_engine.human_audit.design import Design
from data_engine.human_audit.new_sample import make_sample
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import read_plan
from data_engine.replay.judged import Judged
from data_engine.replay.run import OWN, try_settings
from data_engine.replay.settings import changed, settings_of_run

LIMIT = 0.04  # of the predicted IoU: about half of the masks are above


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset that keeps the rejects of some images, and of which nobody likes a mask of a low predicted IoU."""
    root = tmp_path_factory.mktemp("judged")
    model = save_model(root / "tiny.safetensors")
    settings = ("masks.pred_iou_thresh=0.001", "masks.box_nms_thresh=1", "output.keep_rejects=0.7")
    generate(str(write_photos(root / "photos", 6)), str(root / "out"), config_for(model, *settings))
    dataset = MaskDataset(str(root / "out"))
    scores = dataset.masks(["image_id", "mask_id", "predicted_iou"]).to_pylist()
    good = {(row["image_id"], row["mask_id"]): row["predicted_iou"] > LIMIT for row in scores}
    for name, design in {
        "masks": Design(size=60),
        "images": Design(unit="images", size=6),
        "bins": Design(size=60, stratify=("iou",)),
    }.items():
        sample = make_sample(dataset, name, design)
        verdicts = [(key, "accept" if good[key] else "reject") for key in sample.keys]
        when = datetime.now(timezone.utc)
        AnswerSession(dataset.root, name).add(
            [
                Answer(image_id=key[0], mask_id=key[1], who="Ada", verdict=verdict, answered_at=when)
                for key, verdict in verdicts
            ]
        )
    return dataset.root


@pytest.mark.parametrize("name", ["masks", "images", "bins"])
def test_precision_rises_to_one_where_all_that_people_rejected_goes(output: str, name: str) -> None:
    plan, dataset = read_plan(output), MaskDataset(output)
    assert plan is not None
    config = settings_of_run(plan, output)
    judged = Judged.read(output, name, plan.fingerprint)
    tries = {str(value): changed(config, [f"masks.pred_iou_thresh={value}"]) for value in (0.02, LIMIT, 1)}
    outcomes = try_settings(dataset, config, tries, judged=judged)
    assert 0 < outcomes[0].images < 6
    own, low, high, none = (judged.estimate(label) for label in (OWN, "0.02", str(LIMIT), "1"))
    assert own.share is not None
    assert low.share is not None
    assert 0 < own.share < low.share < 1
    assert (high.share, high.interval.high) == (1, 1)
    assert own.decided > low.decided > high.decided > 0
    assert own.interval.low <= own.share <= own.interval.high
    assert (none.share, none.decided) == (None, 0)


def test_the_command_prints_it(output: str) -> None:
    arguments = ["replay", output, "--sweep", f"masks.pred_iou_thresh=0.02,{LIMIT}", "--audit", "masks"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    line = next(line.split() for line in found.stdout.splitlines() if line.startswith(str(LIMIT)) and "100.0%" in line)
    assert line[2:] == ["100.0%", line[3], "to", "100.0%"]
    precise = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)[2]["precision"]
    assert (precise["accepted"], str(precise["judged"])) == (1, line[1])


def test_an_audit_that_is_not_there(output: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="bins, images, masks"):
        Judged.read(output, "other", "f")
    with pytest.raises(DatasetError, match="another dataset"):
        Judged.read(output, "masks", "f")
