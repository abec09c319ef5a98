"""`data-engine train`: from files to a checkpoint, and on to the same curve after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from train.blobs import settings_for, write_id_maps
from typer.testing import CliRunner

from data_engine.cli import app
from data_engine.errors import ConfigError, UsageError
from data_engine.train.supervised.log_files import read_lines
from data_engine.train.supervised.settings_file import load_settings

FINETUNE = Path(__file__).parents[2] / "configs" / "finetune.yaml"


def write_config(folder: Path, **sections) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings_for(**sections).model_dump(mode="json")))
    return path


def command(config: Path, data: Path, output: Path) -> list[str]:
    words = ["train", "--config", str(config), "--data", f"idmaps:{data / 'images'}@{data / 'segments'}"]
    return [sys.executable, "-m", "data_engine.cli", *words, "--output", str(output)]


def curve(output: Path) -> list[dict]:
    return [
        {name: value for name, value in line.items() if name != "seconds"} for line in read_lines(output / "log.jsonl")
    ]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_curve(tmp_path):
    data = write_id_maps(tmp_path / "data", 6)
    train = {"steps": 30, "images_per_batch": 1, "drop_path": 0.2}
    config = write_config(tmp_path, train=train, prompts={"corrections": 1}, run={"state_every_steps": 3})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen(command(config, data, cut), env=environment, stderr=subprocess.PIPE)
    until = time.monotonic() + 200
    while len(curve(cut)) < 8 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 8 <= len(curve(cut)) < 30
    assert (cut / "state.pt").exists()
    assert not (cut / "model.safetensors").exists()
    for output in (cut, whole):
        done = subprocess.run(
            command(config, data, output), env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert ("going on after step" in done.stderr) == (output is cut)
    assert len(curve(whole)) == 30
    assert curve(cut) == curve(whole)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_dry_run_shows_settings_and_data_and_trains_nothing(tmp_path):
    data = write_id_maps(tmp_path / "data", 3)
    output = tmp_path / "run"
    words = ["train", "--config", str(FINETUNE), "--data", str(data), "--output", str(output), "--dry-run"]
    result = CliRunner().invoke(app, [*words, "--set", "train.steps=7"])
    assert result.exit_code == 0, result.output
    assert "steps: 7" in result.output
    assert '"images": 3' in result.output
    assert not output.exists()


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--workers", "2"]])
def test_an_output_that_takes_no_states_is_refused_before_anything_is_loaded(more):
    words = ["train", "--config", str(FINETUNE), "--data", "idmaps:nowhere", "--output", "hf://datasets/a/run", *more]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UsageError)
    assert "--output hf://datasets/a/run: a training writes its state again and again" in str(done.exception)


def test_a_store_is_named_printed_and_asked_by_a_dry_run(tmp_path, bucket):
    data = write_id_maps(tmp_path / "data", 3)
    words = command(write_config(tmp_path), data, f"{bucket}/run")[3:]
    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    assert f"{bucket}/run: no training yet\nNothing was trained." in dry.output
    result = CliRunner().invoke(app, [*words, "--validation", str(data)])
    assert result.exit_code == 0, result.output
    assert "mean IoU on" in result.output
    assert f"{bucket}/run/model.safetensors: " in result.output
    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    assert f"{bucket}/run: a finished training\n" in dry.output


def test_the_result_is_printed(tmp_path):
    data = write_id_maps(tmp_path / "data", 3)
    words = command(write_config(tmp_path), data, tmp_path / "run")[3:]
    result = CliRunner().invoke(app, [*words, "--validation", str(data)])
    assert result.exit_code == 0, result.output
    assert "mean IoU on" in result.output
    assert json.loads((tmp_path / "run" / "card.json").read_text())["evaluation"]


def test_the_shipped_example_loads():
    settings = load_settings(FINETUNE)
    assert settings.model.name == "starter"
    assert load_settings(None, ["model.name=sam_vit_b"]).prompts.corrections == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepz=3"], r"unknown setting 'train\.stepz'; did you mean 'steps'"),
        (["train.steps=0"], r"train\.steps: .*greater than or equal to 1 \(it is 0\)"),
        (["data.filters={min_areas: 3}"], r"unknown setting 'data\.filters\.min_areas'; did you mean 'min_area'"),
        (["run.embeddings_folder=s3://bucket/kept"], r"embeddings_folder is s3://bucket/kept: .* folder on a disk of"),
        (["data.jitter=[2, 1]"], r"jitter \[2\.0, 1\.0\]: write \[from, to\]"),
        (["optimizer.betas=[0.9, 2]"], r"optimizer\.betas\.1: .*less than 1 \(it is 2\)"),
        (["train.seed=99999999999999999999"], r"train\.seed: .*less than 9223372036854775808"),
        (["model.name=null"], "give either name"),
        (["model={architecture: {patch_size: 0}}"], r"patch_size is 0: write a whole number above 0"),
        (["model={architecture: {patch_size: a}}"], r"patch_size is 'a': write a whole number above 0"),
        (["model={architecture: {global_blocks: 3}}"], r"global_blocks is 3: write a list"),
        (["model={architecture: {depth: 3, widht: 4}}"], r"architecture: .*widht"),
        (["train.steps"], r"write it as section\.setting=value"),
        (["train.steps.more=1"], r"'steps' is a value, not a section"),
    ],
)
def test_wrong_settings_are_explained(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(FINETUNE, overrides)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml cannot be read"):
        load_settings(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"list\.yaml: expected settings"):
        load_settings(tmp_path / "list.yaml")
