"""A small simulated cluster with all that goes wrong: every shard is done, or set aside for a reason that is true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_engine.pipeline.scheduler import Policy

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from simulation.cluster import Simulation  # noqa: E402
from simulation.world import World  # noqa: E402

SMALL = {"workers": 50, "shards": 2000, "start_s": (20.0, 60.0)}


@pytest.mark.parametrize(("held", "speculate", "known"), [(2, 2.0, True), (1, None, True), (3, 1.2, False)])
def test_every_image_is_committed_once_whatever_goes_wrong(held, speculate, known):
    world = World(
        **SMALL,
        lost_an_hour=1.0,
        slow_share=0.05,
        slow_s=300.0,
        read_failures=0.02,
        unreadable=1e-3,
        poison=2.5e-3,
        known_sizes=known,
    )
    simulation = Simulation(world, Policy(max_in_flight=held, speculate=speculate, image_timeout=300.0))
    result = simulation.run()
    scheduler, shards = simulation.scheduler, simulation.input
    assert result["counts"]["workers lost"] > 10
    assert scheduler.retries.keys() >= {"shard failed", "preempted", "died", "timed out"}
    assert scheduler.done + len(scheduler.failed) == world.shards
    assert result["shards"]["done_but_not_whole"] == 0
    for shard, reason in scheduler.failed.items():
        number = shards.number[shard]
        if reason == "cannot be read":
            assert number in shards.unreadable
        else:
            assert shards.kills_on_opening(number)
            assert reason.startswith("it killed its worker 8 times")
    assert len(scheduler.failed) == len(shards.unreadable) + 1
    assert all(-0.01 < share < 1 for share in result["shares_of_worker_time"].values())


def test_workers_are_busy():
    result = Simulation(World(**SMALL, poison=0, unreadable=0), Policy()).run()
    assert result["shards"] == {"done": 2000, "failed": 0, "done_but_not_whole": 0}
    assert result["utilisation"] > 0.9


def test_the_same_seed_gives_the_same_run():
    first, second, other = (Simulation(World(workers=5, shards=50, seed=seed), Policy()).run() for seed in (1, 1, 2))
    for varies in ("driver", "simulation_cpu_s", "peak_memory_mb"):
        first.pop(varies)
        second.pop(varies)
    assert first == second
    assert first["makespan_h"] != other["makespan_h"]


def test_the_command_keeps_what_its_output_holds(tmp_path):
    output = tmp_path / "simulation.json"
    output.write_text('{"compared": "kept"}')
    command = [sys.executable, BENCHMARKS / "simulate_cluster.py", "--workers", "4", "--shards", "20"]
    subprocess.run([*command, "--output", output], check=True, capture_output=True, timeout=120)
    written = json.loads(output.read_text())
    assert written["compared"] == "kept"
    assert written["full"]["shards"]["done"] + written["full"]["shards"]["failed"] == 20
