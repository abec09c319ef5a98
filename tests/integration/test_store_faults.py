"""Whole jobs, from S3 to S3, through a store that has bad days: the dataset is that of an undisturbed run."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest
from integration.fault_proxy import FaultProxy, Rule
from pipeline.tiny_job import KEEP_ALL, config_for, rows, save_model, write_photos, write_tar
from rich.console import Console

from data_engine.config import JobConfig
from data_engine.dataset.audit import AuditReport, PlannedCount, audit
from data_engine.dataset.reader import MaskDataset
from data_engine.pipeline import local_outage
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import read_plan
from data_engine.pipeline.policy import Policy
from data_engine.pipeline.progress import Progress
from data_engine.retry import PATIENT

s3fs = pytest.importorskip("s3fs")

SECRET = "planted-secret-key-of-the-store"
PER_COMMIT = "output.images_per_commit=2"
IMAGES = 8


@dataclass(frozen=True)
class Store:
    """A bucket behind the proxy, with images in it, and what becomes of them on a good day."""

    proxy: FaultProxy
    bucket: str
    model: Path
    expected: dict[str, tuple]
    requests: int  # of the undisturbed run from tars

    def input(self, kind: str = "tars") -> str:
        path = {"tars": "in/{a,b}.tar", "photos": "photos/", "manifest": "photos.txt"}[kind]
        return f"{self.bucket}/{path}"

    def new_output(self) -> str:
        return f"{self.bucket}/out-{uuid.uuid4().hex[:8]}"

    def config(self) -> JobConfig:
        return config_for(self.model, PER_COMMIT)

    def command(self, output: str, kind: str = "tars") -> list[str]:
        arguments = ["generate", self.input(kind), output, "--config", "reference"]
        arguments += ["--model", str(self.model), "--device", "cpu"]
        arguments += [part for value in (*KEEP_ALL, PER_COMMIT) for part in ("--set", value)]
        return [sys.executable, "-m", "data_engine.cli", *arguments]


@pytest.fixture(scope="module")
def _store(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("store")
    model = save_model(folder / "tiny.safetensors")
    with pytest.MonkeyPatch.context() as patch, FaultProxy(s3_endpoint) as proxy:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        bucket = f"s3://faults-{uuid.uuid4().hex[:12]}"
        fs = fsspec.filesystem("s3")
        fs.mkdir(bucket)
        fs.put(str(write_tar(folder / "a.tar", IMAGES // 2)), f"{bucket}/in/a.tar")
        fs.put(str(write_tar(folder / "b.tar", IMAGES // 2, first=IMAGES // 2)), f"{bucket}/in/b.tar")
        for photo in write_photos(folder / "photos", IMAGES).iterdir():
            fs.put(str(photo), f"{bucket}/photos/{photo.name}")
        whole = Store(proxy, bucket, model, {}, 0)
        proxy.clear()
        generate(whole.input("tars"), f"{bucket}/whole-tars", whole.config())
        requests = proxy.count()
        generate(whole.input("photos"), f"{bucket}/whole-photos", whole.config())
        expected = {kind: rows(f"{bucket}/whole-{kind}") for kind in ("tars", "photos")}
        yield Store(proxy, bucket, model, expected, requests)
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(_store: Store) -> Iterator[Store]:
    _store.proxy.clear()
    yield _store
    _store.proxy.clear()
    _store.proxy.up()


def audited(output: str) -> AuditReport:
    plan = read_plan(output)
    assert plan is not None
    return audit(MaskDataset(output), [PlannedCount(s.id, s.images) for s in plan.shards], plan.fingerprint)


def assert_undisturbed(store: Store, output: str, kind: str = "tars", stopped: bool = False) -> None:
    """The dataset is what a good day makes, to the row. Nothing lies beside it, unless the job was stopped."""
    store.proxy.clear()
    report = audited(output)
    assert report.findings == []
    assert report.complete
    assert report.unreferenced == 0 or stopped
    assert rows(output) == store.expected[kind]
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for path in fs.find(output):
        assert SECRET.encode() not in fs.cat_file(path), path
        assert "probe" not in path


@pytest.mark.parametrize("kind", ["photos", "manifest"])
def test_a_photograph_costs_one_request(store: Store, kind: str) -> None:
    fs = fsspec.filesystem("s3")
    listed = "\n".join(f"s3://{path}" for path in fs.find(store.input("photos")))
    fs.pipe_file(store.input("manifest"), listed.encode())
    assert generate(store.input(kind), store.new_output(), store.config()).exit_code == 0
    assert store.proxy.count(path=r"/photos/\w") == IMAGES


CONFLICT = (409, "ConditionalRequestConflict", "PUT")
FAULTS: dict[str, Callable[[FaultProxy], list[Rule]]] = {
    "503 to three of ten requests": lambda p: [p.answer(503, "SlowDown", times=None, chance=0.3)],
    "500 to one of ten requests": lambda p: [p.answer(500, "InternalError", times=None, chance=0.1)],
    "409 to conditional writes": lambda p: [
        p.answer(*CONFLICT, "/_plan/job.json"),
        p.answer(*CONFLICT, "/_commits/", times=2),
        p.answer(*CONFLICT, "/_manifest.json"),
    ],
    "answers cut off": lambda p: [
        p.truncate("GET", r"/in/[ab]\.tar", times=4),
        p.truncate("GET", "/_plan/probe"),
    ],
    "answers with nothing in them": lambda p: [p.empty("GET", "/_plan/probe")],
    "answers lost after the write": lambda p: [
        p.swallow("PUT", "/_plan/probe"),
        p.swallow("PUT", "/_plan/job.json"),
        p.swallow("PUT", "/(images|masks)/", times=2),
        p.swallow("PUT", "/_commits/", times=2),
        p.swallow("PUT", "/_manifest.json"),
    ],
}


@pytest.mark.parametrize("fault", ["truncate", "empty"])
def test_records_whose_answers_are_damaged_are_read_again(store, fault):
    """A job that was stopped before its manifest reads every record when it goes on."""
    output = store.new_output()
    assert generate(store.input(), output, store.config()).complete
    fsspec.filesystem("s3", use_listings_cache=False).rm_file(f"{output}/_manifest.json")
    rule = getattr(store.proxy, fault)("GET", "/_commits/.*json", times=4)
    report = generate(store.input(), output, store.config())
    assert rule.met == 4
    assert report.complete
    assert report.new.images == 0
    store.proxy.clear()
    assert audited(output).findings == []
    assert rows(output) == store.expected["tars"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_day_changes_nothing(store, fault):
    output = store.new_output()
    rules = FAULTS[fault](store.proxy)
    report = generate(store.input(), output, store.config())
    assert all(rule.met > 0 for rule in rules), "a fault never happened"
    assert report.complete
    assert report.exit_code == 0
    assert report.new.images == IMAGES  # no slice of ours was taken for another's
    assert store.proxy.count() < 3 * store.requests + 30, "retries must not become a storm"
    assert_undisturbed(store, output)


def test_images_of_their_own_survive_bad_days_too_and_no_log_tells_the_secret(store, caplog):
    caplog.set_level(logging.DEBUG)
    output = store.new_output()
    store.proxy.answer(503, "SlowDown", "GET", "/photos/", times=None, chance=0.3)
    cut = store.proxy.truncate("GET", "/photos/", times=3)
    assert generate(store.input("photos"), output, store.config()).exit_code == 0
    assert cut.met == 3
    assert "botocore" in caplog.text
    assert SECRET not in caplog.text
    assert_undisturbed(store, output, "photos")


@pytest.mark.parametrize("seconds", [5, pytest.param(25, marks=pytest.mark.slow)])
def test_an_outage_in_the_middle_is_waited_out(store, seconds):
    output = store.new_output()
    store.proxy.when("PUT", "/_commits/", 2, lambda: store.proxy.outage(seconds))
    finished = subprocess.run(store.command(output), capture_output=True, text=True, timeout=250, check=False)
    assert finished.returncode == 0, finished.stderr
    assert store.proxy.faults["outage"] == 1
    assert SECRET not in finished.stdout + finished.stderr
    assert_undisturbed(store, output)


def test_an_outage_that_outlasts_the_patience_of_a_request_does_not_end_a_local_job(store, monkeypatch):
    output = store.new_output()
    quick = Policy(store_pause=0.5, store_longest_pause=1.0, store_patience=60.0)
    monkeypatch.setattr(local_outage, "POLICY", quick)
    said, seconds = io.StringIO(), PATIENT.seconds
    store.proxy.when("PUT", "/_commits/", 2, lambda: store.proxy.outage(6))
    object.__setattr__(PATIENT, "seconds", 0.5)
    try:
        progress = Progress(Console(file=said, width=500))
        report = generate(store.input("tars"), output, store.config(), progress=progress)
    finally:
        object.__setattr__(PATIENT, "seconds", seconds)
    assert (report.exit_code, report.failed_shards) == (0, [])
    assert len(re.findall(r"waiting for the (?:in|out)put, at no shard's expense", said.getvalue())) == 1
    assert "it is there again" in said.getvalue()
    assert_undisturbed(store, output)


def test_rights_lost_in_the_middle_stop_the_job_with_one_line(store):
    kind = "photos"  # not one of them may be given up for it
    output = store.new_output()
    proxy = store.proxy
    proxy.when("PUT", "/_commits/", 2, lambda: proxy.answer(403, "AccessDenied", times=None))
    stopped = subprocess.run(store.command(output, kind), capture_output=True, text=True, timeout=120, check=False)
    assert stopped.returncode == 1, stopped.stderr
    assert proxy.faults["403"] < 100
    errors = [line for line in stopped.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, stopped.stderr
    for part in (f"{store.bucket}/", "access denied", "permissions", "AWS_ACCESS_KEY_ID"):
        assert part in errors[0]
    assert "Traceback" not in stopped.stderr
    assert SECRET not in stopped.stdout + stopped.stderr
    proxy.clear()
    assert MaskDataset(output).totals.failed == 0
    finished = subprocess.run(store.command(output, kind), capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    assert SECRET not in finished.stdout + finished.stderr
    assert_undisturbed(store, output, kind, stopped=True)


def test_two_at_once_make_one_dataset(store):
    output = store.new_output()
    store.proxy.answer(503, "SlowDown", times=None, chance=0.1)
    processes = [
        subprocess.Popen(store.command(output), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        said, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors
        assert SECRET not in said + errors
    assert_undisturbed(store, output)
