"""kill -9 at random moments of a real job, again and again, then the dataset of an undisturbed run."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from pipeline.tiny_job import KEEP_ALL, config_for, rows, save_model, write_tar

from data_engine.pipeline.job import generate

IMAGES = 240


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "data_engine.cli", *arguments]


@pytest.fixture
def job(tmp_path: Path) -> tuple[Path, list[str], tuple[str, ...]]:
    model = save_model(tmp_path / "tiny.safetensors")
    tar = write_tar(tmp_path / "a.tar", IMAGES, broken=(11, 222))
    overrides = (*KEEP_ALL, "masks.points_per_side=8", "output.images_per_commit=5", "run.device=cpu")
    arguments = ["--config", "reference", "--model", str(model)]
    arguments += [part for value in overrides for part in ("--set", value)]
    return tar, command("generate", str(tar), str(tmp_path / "out"), *arguments), (f"model.name={model}", *overrides)


def commits(output: Path) -> int:
    return len(list((output / "_commits").glob("*.json"))) if (output / "_commits").is_dir() else 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("wanted", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_many_kills_and_the_same_rows(job, tmp_path, wanted):
    tar, generate_command, overrides = job
    output = tmp_path / "out"
    rng = random.Random(0)
    kills = 0
    while kills < wanted:
        process = subprocess.Popen(generate_command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = commits(output)
        if rng.random() < 0.2:  # while it starts: before, or while, the plan is made
            time.sleep(rng.uniform(0.2, 2.0))
        else:
            while process.poll() is None and commits(output) == before:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the job ended before it had been killed often enough"
        kills += 1
    finished = subprocess.run(generate_command, capture_output=True, text=True, timeout=250, check=False)
    assert finished.returncode == 3, finished.stderr  # two images are broken
    audited = subprocess.run(command("audit", str(output)), capture_output=True, text=True, timeout=100, check=False)
    assert audited.returncode == 0, audited.stdout
    assert f"{IMAGES} images" in audited.stdout

    generate(str(tar), str(tmp_path / "whole"), config_for(Path(overrides[0].removeprefix("model.name=")), *overrides))
    assert rows(output) == rows(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_within_seconds_keeps_what_is_done_and_says_how_to_go_on(job, tmp_path, number):
    _, generate_command, _ = job
    # Nothing would be committed by then, if stopping did not do it.
    generate_command = [part.replace("images_per_commit=5", "images_per_commit=1000") for part in generate_command]
    process = subprocess.Popen(generate_command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "running on" in line:
            break
    time.sleep(1.5)
    process.send_signal(number)
    begun = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    assert "data-engine generate" in errors
    assert commits(tmp_path / "out") == 1
    assert not (tmp_path / "out" / "_manifest.json").exists()


def test_a_terminal_that_is_closed_costs_nothing_that_is_masked(job, tmp_path):
    _, generate_command, _ = job
    generate_command = [part.replace("images_per_commit=5", "images_per_commit=1000") for part in generate_command]
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        generate_command,
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - its own terminal
    )
    os.close(end)
    said = b""
    while b"running on" not in said:
        said += os.read(terminal, 1000)
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:  # what nobody reads would hold the job up
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 1000)
    os.close(terminal)
    process.wait(timeout=30)
    assert commits(tmp_path / "out") == 1
