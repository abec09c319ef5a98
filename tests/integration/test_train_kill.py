"""A training whose only output is a store, killed with SIGKILL, goes on elsewhere to the weights of an unbroken run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest
import yaml
from integration.fault_proxy import FaultProxy
from train.blobs import settings_for, write_id_maps

from data_engine.train.supervised.log_files import parse_lines, read_lines
from data_engine.train.supervised.run import open_sources, train

pytestmark = pytest.mark.timeout(280)

STEPS, EVERY = 24, 4
# The command itself, but a dead holder of the lock is dead after two seconds instead of a minute.
COMMAND = """
from data_engine.train.supervised import store_lock
store_lock.PULSE = store_lock.Pulse(every=0.3, silence=2.0, look=0.1)
from data_engine.cli import command
command()
"""


@dataclass
class Machines:
    """Trains one output, each time in a place that knows nothing of the times before."""

    proxy: FaultProxy
    folder: Path
    output: str
    words: list[str]
    environment: dict[str, str]
    started: list[Path] = field(default_factory=list)

    def start(self) -> subprocess.Popen[str]:
        scratch = self.folder / f"machine-{len(self.started)}"
        scratch.mkdir()
        self.started.append(scratch)
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *self.words, "--output", self.output],
            env={**self.environment, "TMPDIR": str(scratch)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill(self, when: tuple[str, str, int], delay: float = 0.0) -> None:
        """Starts the command and kills it at the n-th request of a kind."""
        now = threading.Event()
        self.proxy.clear()
        self.proxy.when(*when, now.set)
        process = self.start()
        assert now.wait(120), process.communicate(timeout=10)
        threading.Event().wait(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL

    def end(self) -> str:
        """Runs the command to its end. Returns what it said."""
        self.proxy.clear()
        process = self.start()
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
        return said

    def object(self, name: str) -> bytes:
        return fsspec.filesystem("s3").cat_file(f"{self.output}/{name}")

    def curve(self) -> list[dict]:
        return without_seconds(parse_lines(self.object("log.jsonl").decode()))


def without_seconds(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture
def machines(s3_endpoint: str, bucket: str, tmp_path: Path) -> Iterator[Machines]:
    data = write_id_maps(tmp_path / "data", 6)
    spec = f"idmaps:{data / 'images'}@{data / 'segments'}"
    settings = settings_for(
        train={"steps": STEPS, "images_per_batch": 1, "drop_path": 0.2},
        prompts={"corrections": 1},
        run={"state_every_steps": EVERY},
    )
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    train(settings, open_sources(spec, settings), tmp_path / "whole", data_name=spec)
    with FaultProxy(s3_endpoint) as proxy:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "AWS_ENDPOINT_URL": proxy.url}
        words = ["train", "--config", str(config), "--data", spec]
        yield Machines(proxy, tmp_path, f"{bucket}/run", words, environment)


def assert_unbroken(machines: Machines) -> None:
    whole = machines.folder / "whole"
    assert machines.curve() == without_seconds(read_lines(whole / "log.jsonl"))
    assert machines.object("model.safetensors") == (whole / "model.safetensors").read_bytes()
    card = json.loads(machines.object("card.json"))
    assert card["progress"]["steps"] == STEPS
    assert not list(machines.started[-1].glob("data-engine-*"))
    assert not fsspec.filesystem("s3", use_listings_cache=False).find(f"{machines.output}/_lock")


def test_killed_while_a_state_is_on_its_way_it_goes_on_from_the_one_before(machines: Machines) -> None:
    machines.proxy.clear()
    machines.kill(("PUT", r"/run/state\.pt", 3))
    assert list(machines.started[0].glob("data-engine-train-*"))  # a kill leaves it, and so nothing else may need it
    said = machines.end()
    assert "was at work in it; waiting 2 s for a sign of life" in said
    assert "going on after step" in said
    assert_unbroken(machines)


@pytest.mark.slow
def test_killed_at_any_moment_again_and_again_it_ends_with_the_same_weights(machines: Machines) -> None:
    moments = [
        ("PUT", "/run/_lock/", 1),
        ("PUT", "/run/settings", 1),
        ("PUT", r"/run/log\.jsonl", 1),
        ("PUT", r"/run/state\.pt", 1),
        ("GET", r"/run/state\.pt", 1),
        ("PUT", r"/run/log\.jsonl", 2),
        ("PUT", "/run/_lock/", 5),
        ("PUT", r"/run/model\.safetensors", 1),
        ("PUT", r"/run/card\.json", 1),
    ]
    chance = random.Random(0)
    for moment in moments:
        machines.kill(moment, chance.choice((0.0, 0.01, 0.1)))
    machines.end()
    assert_unbroken(machines)
