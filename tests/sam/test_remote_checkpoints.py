"""Checkpoints by URL, from a real web server and a real S3 server: one copy a version, one download a machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save
from sam.web_server import CONTENT, SHA256, running_server

from data_engine.errors import CheckpointError, UsageError
from data_engine.sam import checkpoints, remote_checkpoints
from data_engine.sam.checkpoint_layouts import to_huggingface
from data_engine.sam.checkpoints import STARTER_FILE, identify, load_checkpoint, resolve
from data_engine.sam.model import Sam, SamArchitecture
from data_engine.sam.remote_checkpoints import fetch_remote, locate
from data_engine.sam.segmenter import load_segmenter

OTHER = CONTENT[::-1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(checkpoints.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def server():
    with running_server() as server:
        server.etag = '"1"'
        yield server


@pytest.fixture
def s3(bucket):
    return fsspec.filesystem("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], use_listings_cache=False)


@pytest.fixture
def s3_requests(caplog):
    """The requests that reached the S3 server, in a process of whoever made them: its access log."""
    caplog.set_level(logging.INFO, logger="werkzeug")
    return lambda method: [m for m in caplog.messages if f"{method} /bucket-" in m]


def refused(name, error=CheckpointError, **options) -> str:
    """The one line that refuses a model."""
    with pytest.raises(error) as caught:
        resolve(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_in(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".sha256"))
    return sorted(str(path.relative_to(folder).parts[-1]) for path in found)


# ---- what is fetched ------------------------------------------------------------------------------------------------


def test_a_web_address_is_fetched_once_for_each_of_its_versions(server, cache):
    name, path, sha256 = resolve(server.url)
    assert (name, sha256, path.read_bytes()) == (server.url, SHA256, CONTENT)
    assert path.is_relative_to(cache)
    assert resolve(server.url) == (name, path, sha256)
    assert identify(server.url) == SHA256
    assert server.asked == [None]
    server.content, server.etag = OTHER, '"2"'
    other = resolve(server.url)
    assert other[1] != path
    assert other[1].read_bytes() == OTHER
    server.content, server.etag = CONTENT, '"1"'
    assert resolve(server.url)[1] == path
    assert server.asked == [None, None]


def test_an_s3_object_is_fetched_once_for_each_of_its_versions(bucket, s3, s3_requests):
    url = f"{bucket}/models/my sam.pth"
    s3.pipe_file(url, CONTENT)
    name, path, sha256 = resolve(url)
    assert (name, sha256, path.read_bytes()) == (url, SHA256, CONTENT)
    assert path.name == "my_sam.pth"
    assert resolve(url) == (name, path, sha256)
    assert len(s3_requests("GET")) == 1
    s3.pipe_file(url, OTHER)
    assert identify(url) == hashlib.sha256(OTHER).hexdigest()
    assert len(s3_requests("GET")) == 2


@pytest.mark.parametrize("size", [0, 1, 64, 65, 500, 640])
def test_pieces_make_the_whole(bucket, s3, cache, monkeypatch, size):
    monkeypatch.setattr(remote_checkpoints, "_PIECE", 64)
    s3.pipe_file(f"{bucket}/x.pth", CONTENT[:size])
    path, sha256 = fetch_remote(locate(f"{bucket}/x.pth"), cache)
    assert path.read_bytes() == CONTENT[:size]
    assert sha256 == hashlib.sha256(CONTENT[:size]).hexdigest()


def test_a_model_runs_from_a_store(bucket, s3):
    s3.put_file(str(STARTER_FILE), f"{bucket}/starter.safetensors")
    segmenter = load_segmenter(f"{bucket}/starter.safetensors", "cpu")
    assert segmenter.checkpoint.name == f"{bucket}/starter.safetensors"
    assert segmenter.checkpoint.sha256 == hashlib.sha256(STARTER_FILE.read_bytes()).hexdigest()
    assert load_segmenter(f"file://{STARTER_FILE}", "cpu").checkpoint.sha256 == segmenter.checkpoint.sha256


def test_a_folder_stands_for_the_model_in_it_and_its_configuration_comes_along(bucket, s3):
    """The number of the decoder's heads is nowhere but in config.json."""
    architecture = SamArchitecture(
        embed_dim=32, depth=1, num_heads=2, mlp_dim=32, global_blocks=(), image_size=64, dim=32, decoder_heads=4
    )
    state = {key: value.clone() for key, value in to_huggingface(Sam(architecture).state_dict()).items()}
    s3.pipe_file(f"{bucket}/sam/model.safetensors", save(state))
    s3.pipe_file(f"{bucket}/sam/config.json", json.dumps({"mask_decoder_config": {"num_attention_heads": 4}}).encode())
    for url in (f"{bucket}/sam", f"{bucket}/sam/", f"{bucket}/sam/model.safetensors"):
        assert load_checkpoint(url).architecture.decoder_heads == 4
    s3.pipe_file(f"{bucket}/sam/config.json", b'{"mask_decoder_config": {"num_attention_heads": 8}}')
    assert load_checkpoint(f"{bucket}/sam").architecture.decoder_heads == 8


# ---- several processes ----------------------------------------------------------------------------------------------

CHILD = """
import logging, sys, time
from pathlib import Path
from data_engine.sam import remote_checkpoints
from data_engine.sam.remote_checkpoints import fetch_remote, locate
logging.basicConfig(level=logging.WARNING, format="%(message)s")
remote_checkpoints._PIECE = 1 << 18
read = remote_checkpoints._StoreSource._read
def slow(self, start):
    while start and not Path(sys.argv[3]).exists():
        time.sleep(0.02)
    return read(self, start)
remote_checkpoints._StoreSource._read = slow
print(*fetch_remote(locate(sys.argv[1]), Path(sys.argv[2])), flush=True)
"""


@pytest.fixture
def start(cache, tmp_path):
    """Starts a process that fetches a URL; of an S3 object, more than the first piece only after `start.go()`."""
    children: list[subprocess.Popen] = []

    def start(url):
        log = tmp_path / f"log-{len(children)}"
        command = [sys.executable, "-c", CHILD, url, str(cache), str(tmp_path / "go")]
        with log.open("w") as stderr:
            children.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True))
        return children[-1]

    start.go = (tmp_path / "go").touch
    start.logs = lambda: [path.read_text() for path in sorted(tmp_path.glob("log-*"))]
    yield start
    for child in children:
        child.kill()
        child.wait()
        child.stdout.close()


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def partial_in(cache):
    return next((path for path in cache.rglob("*.partial") if path.stat().st_size), None)


@pytest.mark.parametrize("where", ["web", "s3"])
def test_four_processes_fetch_once(where, server, bucket, s3, s3_requests, start, cache):
    url = server.url if where == "web" else f"{bucket}/x.pth"
    s3.pipe_file(f"{bucket}/x.pth", CONTENT)
    server.faults = ["stall"]
    children = [start(url) for _ in range(4)]
    wait_until(lambda: sum("waiting for another process" in log for log in start.logs()) == 3)
    assert all(url in log for log in start.logs() if log)
    server.release.set()
    start.go()
    answers = {child.communicate(timeout=60)[0] for child in children}
    assert [child.returncode for child in children] == [0] * 4
    (answer,) = answers
    path, sha256 = answer.split()
    assert (sha256, Path(path).read_bytes()) == (SHA256, CONTENT)
    if where == "web":
        assert server.asked == [None, f"bytes={len(CONTENT) // 2}-"]  # the cut transfer went on, by one of them
    else:
        assert len(s3_requests("GET")) == -(-len(CONTENT) // (1 << 18))  # every piece once


@pytest.mark.parametrize("where", ["web", "s3"])
def test_a_killed_process_holds_nobody_up(where, server, bucket, s3, start, cache):
    url = server.url if where == "web" else f"{bucket}/x.pth"
    s3.pipe_file(f"{bucket}/x.pth", CONTENT)
    server.faults = ["stall"]
    first = start(url)
    wait_until(lambda: partial_in(cache))
    second = start(url)
    wait_until(lambda: "waiting" in "".join(start.logs()))
    os.kill(first.pid, signal.SIGKILL)
    start.go()
    path, sha256 = second.communicate(timeout=60)[0].split()
    assert (sha256, Path(path).read_bytes()) == (SHA256, CONTENT)
    assert files_in(cache) == [Path(path).name]


@pytest.mark.parametrize("etag", ['"1"', 'W/"1"', None], ids=["strong", "weak", "none"])
def test_what_a_killed_process_left_is_used_only_where_it_is_certainly_of_the_same_file(server, start, cache, etag):
    server.etag = etag
    server.faults = ["stall"]
    child = start(server.url)
    wait_until(lambda: partial_in(cache))
    child.kill()
    child.wait()
    server.content = CONTENT if etag == '"1"' else OTHER
    path = resolve(server.url)[1]
    assert path.read_bytes() == server.content
    assert (server.asked[1] is None) == (etag != '"1"')


@pytest.mark.parametrize("arrived", [0, 1000])
def test_a_web_file_replaced_after_it_was_located_is_neither_mixed_nor_taken_for_it(server, cache, arrived):
    located = locate(server.url)
    if arrived:
        server.faults = ["cut", *["503"] * 9]
        with pytest.raises(CheckpointError):
            fetch_remote(located, cache, backoff_s=0)
        assert partial_in(cache)
        server.faults = []
    server.content, server.etag = OTHER, '"2"'
    with pytest.raises(CheckpointError, match="replaced while it was fetched; run again"):
        fetch_remote(located, cache)
    assert files_in(cache) == []
    assert resolve(server.url)[1].read_bytes() == OTHER


def test_an_object_replaced_while_it_is_fetched_is_not_mixed(bucket, s3, cache, monkeypatch):
    monkeypatch.setattr(remote_checkpoints, "_PIECE", 1 << 18)
    read = remote_checkpoints._StoreSource._read

    def replacing(self, start):
        if start == 1 << 20:
            s3.pipe_file(f"{bucket}/x.pth", OTHER)
        return read(self, start)

    s3.pipe_file(f"{bucket}/x.pth", CONTENT)
    with monkeypatch.context() as patch:
        patch.setattr(remote_checkpoints._StoreSource, "_read", replacing)
        assert "replaced while it was fetched; run again" in refused(f"{bucket}/x.pth")
    assert files_in(cache) == []
    assert resolve(f"{bucket}/x.pth")[1].read_bytes() == OTHER


# ---- the promised weights -------------------------------------------------------------------------------------------


def test_other_weights_than_the_expected_are_refused(server, tmp_path):
    local = tmp_path / "local.pth"
    local.write_bytes(CONTENT)
    for name in (server.url, local):
        assert resolve(name, SHA256.upper())[2] == SHA256
        text = refused(name, expected_sha256="0" * 64)
        assert all(part in text for part in (str(name), SHA256, "0" * 64, "new job"))
    assert "64 hexadecimal digits" in refused(local, UsageError, expected_sha256="abc")
    asked = len(server.asked)
    assert checkpoints.registry()["sam_vit_h"].sha256 in refused("sam_vit_h", expected_sha256="0" * 64)
    assert len(server.asked) == asked
    with pytest.raises(CheckpointError, match="expected 0000"):
        load_segmenter("starter", "cpu", expected_sha256="0" * 64)
    assert load_segmenter("starter", "cpu", expected_sha256=identify("starter"))


def test_a_sha256_that_the_store_knows_needs_no_download_and_is_checked(bucket, s3, s3_requests, monkeypatch, cache):
    """As in a Hugging Face repository."""
    s3.pipe_file(f"{bucket}/x.pth", CONTENT)
    real, known = remote_checkpoints._info, {"sha256": SHA256}
    monkeypatch.setattr(remote_checkpoints, "_info", lambda *a: {**real(*a), "lfs": known})
    assert identify(f"{bucket}/x.pth") == SHA256
    assert "expected 0000" in refused(f"{bucket}/x.pth", expected_sha256="0" * 64)
    assert s3_requests("GET") == []
    known["sha256"] = "1" * 64
    assert "expected 1111" in refused(f"{bucket}/x.pth")
    assert files_in(cache) == []


def test_a_damaged_file_in_the_cache_is_refused(server):
    path = resolve(server.url)[1]
    status = path.stat()
    path.write_bytes(OTHER)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a careless copy would
    text = refused(server.url)
    assert all(part in text for part in (str(path), SHA256, "Delete the file"))
    path.unlink()
    assert resolve(server.url)[2] == SHA256


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_missing_objects(server, bucket, s3):
    server.files["/none.pth"] = None
    for url in (f"{server.root}/none.pth", f"{bucket}/none.pth", "s3://no-such-bucket-here/none.pth"):
        text = refused(url)
        assert url in text
        assert "no such object; check the address" in text
    assert "model.safetensors" in refused(bucket)  # a folder, with no model in it


def test_no_credentials(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    text = refused(f"{bucket}/x.pth")
    assert f"{bucket}/x.pth: no credentials found; set AWS_ACCESS_KEY_ID" in text


@pytest.mark.parametrize("url", ["ftp://host/x.pth", "s3://key:hush@bucket/x.pth", "https://me:hush@host/x.pth"])
def test_addresses_that_are_not_allowed(url):
    assert "hush" not in refused(url, UsageError)


def test_a_server_that_is_not_there():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # a port that nobody listens on
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/x.pth"
        with pytest.raises(CheckpointError, match=f"cannot fetch {url}.*check the address"):
            locate(url, backoff_s=0)


def test_signed_links_work_and_their_signatures_are_told_to_nobody(server, cache):
    link = f"{server.url}?X-Amz-Credential=me&X-Amz-Signature=hush"
    name, path, sha256 = resolve(link)
    assert sha256 == SHA256
    assert name == server.url
    assert "hush" not in str(path)
    assert resolve(link.replace("hush", "renewed"))[1] == path
    assert server.asked == [None]
    server.files["/weights.pth"] = None
    assert "hush" not in refused(link)
    server.files = {"/weights.pth": b"<html>"}
    server.etag = '"3"'
    with pytest.raises(CheckpointError, match="web page") as caught:
        load_checkpoint(link)
    assert server.url in str(caught.value)
    assert "hush" not in str(caught.value)


def test_truncated_transfers_say_how_far_they_came(server, cache):
    server.faults = ["cut"] * 20
    with pytest.raises(CheckpointError, match=r"ended at .* of 3,000,017 bytes.*run again") as caught:
        fetch_remote(locate(server.url), cache, backoff_s=0)
    assert server.url in str(caught.value)
    server.faults = []
    assert resolve(server.url)[2] == SHA256  # what had arrived is gone on from


def test_a_disk_without_space_is_noticed_before(server, monkeypatch, cache):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    text = refused(server.url)
    assert all(part in text for part in (server.url, "3,000,017 bytes", "1,000 bytes free", "DATA_ENGINE_CACHE"))
    assert server.asked == []


def test_a_disk_that_fills_up_is_an_error_at_once(server):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        assert "no space" in refused(server.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(server.asked) == 1
    assert resolve(server.url)[2] == SHA256


def test_a_web_page_and_a_foreign_model_are_named_by_their_address(server, bucket, s3):
    for content, said in ((b"<!DOCTYPE html>", "web page"), (save({"conv": torch.zeros(2)}), "not a SAM")):
        s3.pipe_file(f"{bucket}/x.safetensors", content)
        with pytest.raises(CheckpointError, match=said) as caught:
            load_checkpoint(f"{bucket}/x.safetensors")
        assert str(caught.value).startswith(f"{bucket}/x.safetensors: ")
