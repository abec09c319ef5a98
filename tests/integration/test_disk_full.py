"""A file system that runs full in the middle of a job: one clear line, nothing half-visible, and then it goes on."""

from __future__ import annotations

import subprocess
import sys

from pipeline.tiny_job import KEEP_ALL, config_for, rows, save_model, write_tar

from data_engine.pipeline.job import generate

# The size limit of files stands in for a full disk: the kernel refuses the write in the middle of it.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
sys.argv = ["data-engine", *sys.argv[1:]]
from data_engine.cli import main
main()
"""


def test_a_write_that_does_not_fit_stops_the_job_and_the_job_goes_on_later(tmp_path):
    model = save_model(tmp_path / "tiny.safetensors")
    tar = write_tar(tmp_path / "a.tar", 40)
    overrides = (*KEEP_ALL, "masks.box_nms_thresh=1.0", "run.device=cpu")
    arguments = ["generate", str(tar), str(tmp_path / "out"), "--config", "reference", "--model", str(model)]
    arguments += [part for value in overrides for part in ("--set", value)]
    stopped = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert stopped.returncode == 1, stopped.stderr
    assert "no space left on the device" in stopped.stderr
    assert "run the same command again" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert list((tmp_path / "out").rglob("*.tmp")) == []

    config = config_for(model, *overrides)
    assert generate(str(tar), str(tmp_path / "out"), config).complete
    generate(str(tar), str(tmp_path / "whole"), config)
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
