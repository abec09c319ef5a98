"""A training whose output lies in a store: what ends up there, who may write, and what a bad day of it costs."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from integration.fault_proxy import FaultProxy
from train.blobs import Blobs, settings_for
from train.test_supervised_training import BeginsAt, CutAfter, SignalAt

from data_engine.errors import ClusterError, PlanMismatch, StorageError, UsageError
from data_engine.pipeline.commit import put
from data_engine.stop_signals import Stopped
from data_engine.storage import list_names, read_bytes
from data_engine.train.supervised import outputs, store_lock, store_mirror
from data_engine.train.supervised.card import write_card
from data_engine.train.supervised.log_files import parse_lines
from data_engine.train.supervised.outputs import check_output, train_into
from data_engine.train.supervised.run import Sources, Unwatched, train
from data_engine.train.supervised.scratch import scratch_folder
from data_engine.train.supervised.store_lock import LockLost, Pulse, StoreLock, only_writer_in_store
from data_engine.train.supervised.store_mirror import StoreMirror
from data_engine.train.supervised.workers import Alone

SOURCES = Sources(Blobs(6), Blobs(2))
QUICK = Pulse(every=0.2, silence=1.0, look=0.1)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def proxy(s3_endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch):
    import s3fs

    with FaultProxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


def objects(url: str) -> dict[str, bytes]:
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    root = url.removeprefix("s3://")
    return {path.removeprefix(root + "/"): fs.cat_file(path) for path in fs.find(root)}


def losses(url: str) -> list[float]:
    return [line["loss"] for line in parse_lines(read_bytes(f"{url}/log.jsonl").decode())]


def test_all_of_it_is_in_the_store_and_nothing_stays_here(bucket: str, tmp_path: Path, scratch: Path) -> None:
    settings = settings_for(run={"tensorboard": True, "embeddings": "disk"}, train={"frozen": ["image_encoder.*"]})
    assert check_output(f"{bucket}/run") == "no training yet"
    weights = train_into(settings, SOURCES, f"{bucket}/run")
    assert weights == f"{bucket}/run/model.safetensors"
    assert not list(scratch.glob("data-engine-*"))
    alone = train(settings, SOURCES, tmp_path / "alone").parent
    there = objects(f"{bucket}/run")
    here = {path.relative_to(alone).as_posix(): path for path in alone.rglob("*") if path.is_file()}
    expected = {name for name in here if name != ".lock" and not name.startswith(("tensorboard/", "embeddings/"))}
    assert {name for name in there if not name.startswith("tensorboard/")} == expected
    assert [name for name in there if name.startswith("tensorboard/events")]
    assert there["model.safetensors"] == here["model.safetensors"].read_bytes()
    assert check_output(f"{bucket}/run") == "a finished training"


def test_a_cut_run_goes_on_where_nothing_is_left_of_it(bucket: str, scratch: Path) -> None:
    settings = settings_for(train={"steps": 6, "drop_path": 0.3, "images_per_batch": 1, "accumulate": 2})
    train_into(settings, SOURCES, f"{bucket}/whole")
    with pytest.raises(KeyboardInterrupt):
        train_into(settings, SOURCES, f"{bucket}/cut", watcher=CutAfter(5))
    assert not list(scratch.glob("data-engine-*"))
    assert check_output(f"{bucket}/cut") == "a training to go on with"

    class Began(Unwatched):
        def began(self, step: int, steps: int) -> None:
            assert step == 4

    train_into(settings, SOURCES, f"{bucket}/cut", watcher=Began())
    assert losses(f"{bucket}/cut") == losses(f"{bucket}/whole")
    cut, whole = objects(f"{bucket}/cut"), objects(f"{bucket}/whole")
    assert cut["model.safetensors"] == whole["model.safetensors"]
    assert cut["validation.jsonl"] == whole["validation.jsonl"]


def test_a_signal_ends_it_with_its_last_step_in_the_store(bucket: str) -> None:
    settings = settings_for(run={"state_every_steps": 100})
    with pytest.raises(Stopped):
        train_into(settings, SOURCES, f"{bucket}/run", watcher=SignalAt(3))
    assert len(losses(f"{bucket}/run")) == 3
    train_into(settings, SOURCES, f"{bucket}/run", watcher=BeginsAt(3))


def test_a_signal_at_the_very_end_leaves_a_finished_training(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are being written, or copied: whoever kills it later has lost nothing by that."""

    def written(*args: Any) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return write_card(*args)

    monkeypatch.setattr("data_engine.train.supervised.run.write_card", written)
    train_into(settings_for(run={"state_every_steps": 100}), SOURCES, f"{bucket}/run")
    assert check_output(f"{bucket}/run") == "a finished training"


def test_a_signal_ends_the_waiting_for_a_store_and_what_it_lacks_is_kept(
    bucket: str, proxy: FaultProxy, scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class AwayAtTheEnd(Unwatched):
        def stepped(self, record: dict[str, Any]) -> None:
            if record["step"] == 4:
                proxy.down()

    def away(self: StoreMirror, *_: object) -> float:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return 60.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreMirror, "_pause_after", away)
        with pytest.raises(KeyboardInterrupt):
            train_into(settings_for(), SOURCES, f"{bucket}/run", watcher=AwayAtTheEnd())
    (kept,) = scratch.glob("data-engine-not-stored-*")
    assert f"{kept}/run: copy all of that to {bucket}/run" in caplog.text
    proxy.up()


def test_a_finished_run_stays_as_it_is_and_another_is_refused_by_its_url(bucket: str) -> None:
    url = f"{bucket}/run"
    train_into(settings_for(), SOURCES, url)
    before = objects(url)
    train_into(settings_for(), SOURCES, url)
    assert objects(url) == before
    with pytest.raises(PlanMismatch, match=rf"^{url} holds a training with other settings.*train\.steps: 4 -> 9"):
        train_into(settings_for(train={"steps": 9}), SOURCES, url)
    assert objects(url) == before


def test_a_second_writer_is_refused_by_name_and_writes_nothing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_engine.train.supervised.store_lock.PULSE", QUICK)
    with only_writer_in_store(f"{bucket}/run", QUICK):
        with pytest.raises(StorageError, match=r"process \d+ on .* is at work in it; wait for its end, or choose an"):
            train_into(settings_for(), SOURCES, f"{bucket}/run")
        assert all(name.startswith("_lock/") for name in objects(f"{bucket}/run"))
    assert not objects(f"{bucket}/run")
    train_into(settings_for(train={"steps": 1}), SOURCES, f"{bucket}/run")


def test_of_two_that_start_at_once_one_gets_it(bucket: str) -> None:
    url, barrier, ends = f"{bucket}/run", threading.Barrier(4), threading.Event()
    got: list[object] = []

    def start() -> None:
        barrier.wait()
        try:
            with only_writer_in_store(url, QUICK):
                got.append("lock")
                ends.wait(20)
        except StorageError as error:
            got.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        if len(got) == 4:
            break
        threading.Event().wait(0.1)
    ends.set()
    for thread in threads:
        thread.join()
    assert got.count("lock") == 1
    assert len(got) == 4


def test_a_dead_writers_lock_is_taken_over_and_it_finds_out_when_it_wakes(
    bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{bucket}/run"
    asleep = StoreLock(url, Pulse(every=100, silence=1.0))
    asleep.take()
    with only_writer_in_store(url, QUICK) as awake:
        assert "was at work in it; waiting 1 s for a sign of life" in caplog.text
        with pytest.raises(LockLost, match="has taken over"):
            asleep.insist()
        awake.insist()
        assert list_names(f"{url}/_lock") == ["00000002.json"]
    asleep.release()
    assert not objects(url)


def test_a_store_that_ignores_conditions_lets_two_begin_and_the_first_finds_out(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoreLock, "_dead_or_free", lambda _: 0)  # both look before either writes
    monkeypatch.setattr(store_lock, "put_if_absent", lambda uri, data: put(uri, data) is None)
    slow = Pulse(every=100)
    with only_writer_in_store(f"{bucket}/run", slow) as first, only_writer_in_store(f"{bucket}/run", slow) as second:
        second.insist()
        with pytest.raises(LockLost, match="has taken over"):
            first.insist()


def test_a_store_that_knows_no_conditions_is_used(bucket: str, proxy: FaultProxy) -> None:
    refused = proxy.answer(501, "NotImplemented", "PUT", "/_lock/")
    with only_writer_in_store(f"{bucket}/run", QUICK) as lock:
        assert refused.met
        lock.insist()
        with pytest.raises(StorageError, match="is at work in it"), only_writer_in_store(f"{bucket}/run", QUICK):
            pass


def test_one_that_lost_the_output_ends_and_writes_nothing_more(bucket: str) -> None:
    url = f"{bucket}/run"

    class TakenOver(Unwatched):
        def stepped(self, record: dict) -> None:
            if record["step"] == 1:
                fs = fsspec.filesystem("s3")
                fs.pipe_file(f"{url}/_lock/00000002.json", json.dumps({"owner": "x", "host": "b", "pid": 1}).encode())

    with pytest.raises(LockLost, match=r"process 1 on b .* has taken over"):
        train_into(settings_for(train={"steps": 40}), SOURCES, url, watcher=TakenOver())
    assert set(objects(url)) == {"_lock/00000002.json"}


def test_a_slow_upload_does_not_hold_the_training_up_and_the_next_takes_the_newest_state(
    bucket: str, proxy: FaultProxy
) -> None:
    url = f"{bucket}/run"
    slow = proxy.delay(60, "PUT", "/run/state", times=1)

    class Ends(Unwatched):
        def stepped(self, record: dict) -> None:
            if record["step"] == 11:  # after five states
                assert slow.met == 1
                assert proxy.count("PUT", "/run/state") == 1
                proxy.down()  # nobody waits for the minute to pass
                proxy.up()

    settings = settings_for(train={"steps": 12, "images_per_batch": 1}, prompts={"corrections": 0})
    train_into(settings, SOURCES, url, watcher=Ends())
    assert proxy.count("PUT", "/run/state") <= 4
    assert check_output(url) == "a finished training"


def test_training_goes_on_while_the_store_is_away(
    bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_mirror, "_SAY_SO_AFTER_S", 0.0)
    url = f"{bucket}/run"

    class Away(Unwatched):
        def stepped(self, record: dict) -> None:
            if record["step"] == 1:
                proxy.down()
            if record["step"] == 7:
                for _ in range(100):
                    if "the training goes on meanwhile" in caplog.text:
                        break
                    threading.Event().wait(0.1)
                proxy.up()

    settings = settings_for(train={"steps": 8})
    train_into(settings, SOURCES, url, watcher=Away())
    assert caplog.text.count("it is tried again, and the training goes on meanwhile") == 1
    assert caplog.text.count("the store answers again, after") == 1
    assert len(losses(url)) == 8
    assert check_output(url) == "a finished training"


def test_a_store_that_is_away_at_the_end_is_waited_for(
    bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_mirror, "_SAY_SO_AFTER_S", 0.0)

    class AwayAtTheEnd(Unwatched):
        def stepped(self, record: dict) -> None:
            if record["step"] == 3:
                proxy.outage(6)

    train_into(settings_for(), SOURCES, f"{bucket}/run", watcher=AwayAtTheEnd())
    assert "the store answers again, after" in caplog.text
    assert check_output(f"{bucket}/run") == "a finished training"


def test_what_a_store_does_not_take_at_the_end_is_kept_here(
    bucket: str, proxy: FaultProxy, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/run"

    class Refusing(Unwatched):
        def stepped(self, record: dict) -> None:
            if record["step"] == 4:
                proxy.answer(403, "AccessDenied", "PUT", "/run/[^_]", times=None)

    with pytest.raises(StorageError, match=r"access denied .* The training is done; what the store lacks is in ") as e:
        train_into(settings_for(), SOURCES, url, watcher=Refusing())
    (kept,) = scratch.glob("data-engine-*")
    assert f"{kept}/run: copy all of that to {url}" in str(e.value)
    whole = train(settings_for(), SOURCES, tmp_path / "whole")
    assert (kept / "run" / "model.safetensors").read_bytes() == whole.read_bytes()
    proxy.clear()
    train_into(settings_for(), SOURCES, url)
    assert objects(url)["model.safetensors"] == whole.read_bytes()
    assert kept.exists()


def test_half_an_upload_is_nothing(bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large state, whose parts are uploaded one by one: one that was cut in the middle leaves the old state."""
    import s3fs

    monkeypatch.setattr("data_engine.dataset.export.destination._SINGLE_PUT", 1 << 20)
    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 5 << 20)
    url = f"{bucket}/run"
    large = {**settings_for().model_dump()["model"]["architecture"], "mlp_dim": 6144}
    settings = settings_for(model={"architecture": large}, train={"steps": 5})
    with pytest.raises(KeyboardInterrupt):
        train_into(settings, SOURCES, url, watcher=CutAfter(3))
    before = objects(url)["state.pt"]
    assert proxy.count("PUT", "state.pt.*partNumber=2") == 1
    cut = proxy.answer(403, "AccessDenied", "PUT", "state.pt.*partNumber=2", times=None)
    with pytest.raises(KeyboardInterrupt):
        train_into(settings, SOURCES, url, watcher=CutAfter(5))
    assert cut.met
    proxy.clear()
    assert objects(url)["state.pt"] == before
    train_into(settings, SOURCES, url)
    assert len(losses(url)) == 5


def test_what_killed_trainings_left_on_this_machine_is_removed(bucket: str, scratch: Path) -> None:
    for name, age in (("data-engine-train-dead", 100), ("data-engine-train-new", 0), ("data-engine-not-stored-x", 100)):
        (scratch / name / "run").mkdir(parents=True)
        (scratch / name / ".lock").touch()
        at = (scratch / name).stat().st_mtime - age
        os.utime(scratch / name, (at, at))
    with scratch_folder() as living:
        at = living.folder.stat().st_mtime - 100
        os.utime(living.folder.parent, (at, at))
        with scratch_folder():
            assert living.folder.exists()
    assert sorted(path.name for path in scratch.glob("data-engine-*")) == [
        "data-engine-not-stored-x",
        "data-engine-train-new",
    ]


def test_workers_that_found_different_states_do_not_train(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Alone):
        world = 2

        def gather(self, value):
            return [value, "another" if value is not None else None]

    train_into(settings_for(), SOURCES, f"{bucket}/run")
    monkeypatch.setattr(outputs, "train", pytest.fail)
    with pytest.raises(ClusterError, match="the state was written anew while the workers read it"):
        train_into(settings_for(), SOURCES, f"{bucket}/run", workers=Two())


@pytest.mark.parametrize("url", ["hf://datasets/me/run", "https://host/run"])
def test_stores_that_cannot_be_written_again_and_again_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"writes its state again and again; name a folder, or a store"):
        check_output(url)


def test_missing_credentials_and_buckets_are_said_before_any_work(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import s3fs

    with pytest.raises(StorageError, match="no such bucket"):
        train_into(settings_for(), SOURCES, "s3://nobodys-bucket-of-this-name/run")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="no credentials found; set AWS_ACCESS_KEY_ID"):
        check_output(f"{bucket}/run")
