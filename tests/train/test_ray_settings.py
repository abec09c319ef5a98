"""What a training asks of a cluster, and how its workers wait for each other. No cluster is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_engine.errors import ClusterError
from data_engine.train.supervised import ray_workers

WORKER = """
import sys, time
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from data_engine.train.supervised.workers import Together

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
(folder / f"ready-{rank}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.01)
dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=5), world_size=2, rank=rank)
workers = Together()
if rank == 0:
    time.sleep(8)
print(float(workers.mean(torch.tensor(float(rank)))), workers.gather(rank))
"""


def test_workers_wait_longer_for_a_validation_than_for_each_other_at_the_start(tmp_path: Path) -> None:
    """Only worker 0 validates; the others wait in the next exchange of gradients, which must not time out."""
    both = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    assert [process.communicate(timeout=240)[0] for process in both] == ["0.5 [0, 1]\n"] * 2


def test_an_output_that_a_node_does_not_see_is_refused(tmp_path: Path) -> None:
    ray_workers._insist_on_shared(tmp_path)
    with pytest.raises(ClusterError, match=r"is not there on the node .*: name a folder that all nodes share"):
        ray_workers._insist_on_shared(tmp_path / "run")


def test_cpus_are_no_replacement_for_gpus_that_were_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ClusterError, match=r"--device cuda: the cluster has 3 GPUs for 4 workers; use fewer workers"):
        ray_workers._on_gpus("cuda", 3, 4)
    assert ray_workers._on_gpus("cuda", 4, 4)
    assert not ray_workers._on_gpus("cpu", 4, 4)
    assert not ray_workers._on_gpus("auto", 3, 4)
    assert "the cluster has 3 GPUs for 4 workers: all of them train on CPUs" in caplog.text
