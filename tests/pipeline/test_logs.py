"""What a log line says, to people and to machines, from any thread, and what it never says."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_engine.pipeline.logs import carry_fields, configure_logging, current_fields, log_fields, logs_are_json

log = logging.getLogger("data_engine.somewhere")


@pytest.fixture(autouse=True)
def logging_as_before():
    root, own = logging.getLogger(), logging.getLogger("data_engine")
    before = root.handlers[:], root.level, own.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])
    logging.captureWarnings(False)


@pytest.fixture
def lines(capsys):
    """The JSON objects written so far."""
    configure_logging("INFO", as_json=True)
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_an_object(lines):
    log.info("read %s in %d s", "a\nb \udcff é", 3)
    (entry,) = lines()
    assert list(entry) == ["time", "level", "logger", "message"]
    assert entry["level"] == "INFO"
    assert entry["logger"] == "data_engine.somewhere"
    assert entry["message"] == "read a\nb \udcff é in 3 s"


def test_time_is_utc_in_milliseconds(lines):
    record = logging.makeLogRecord({"name": "data_engine", "levelno": 30, "levelname": "WARNING", "msg": "x"})
    for created, expected in ((0, "1970-01-01T00:00:00.000Z"), (1.0625, "1970-01-01T00:00:01.062Z")):
        record.created = created
        logging.getLogger().handle(record)
        assert lines()[0]["time"] == expected


def test_fields_are_nested_and_end_with_their_block(lines):
    with log_fields(run="r", worker="w"):
        with log_fields(shard="s"):
            log.warning("1")
            with log_fields(image_id="i", shard="t"):
                log.warning("2")
            log.warning("3", extra={"image_id": 7})
        log.warning("4")
    with pytest.raises(KeyError), log_fields(run="x"):
        raise KeyError
    log.warning("5")
    found = [{k: v for k, v in line.items() if k not in ("time", "level", "logger", "message")} for line in lines()]
    assert found == [
        {"run": "r", "worker": "w", "shard": "s"},
        {"run": "r", "worker": "w", "shard": "t", "image_id": "i"},
        {"run": "r", "worker": "w", "shard": "s", "image_id": "7"},
        {"run": "r", "worker": "w"},
        {},
    ]


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_threads_show_what_they_are_handed(lines):
    with log_fields(run="r", shard="s"):
        carried = carry_fields(lambda: log.warning("x"))
        with log_fields(shard="t"), ThreadPoolExecutor(2) as pool:
            in_thread(carried)
            pool.submit(carry_fields(log.warning), "y").result()
            pool.submit(log.warning, "z").result()  # nothing of the last task is left in the pool's thread
    assert [(line["run"], line.get("shard")) for line in lines()] == [("r", "s"), ("r", "t"), ("r", None)]


def test_a_thread_from_before_shows_the_process_but_no_shard_of_another_thread(lines):
    ready, logged = threading.Event(), threading.Event()

    def library():
        ready.wait(30)
        log.warning("from a library")
        logged.set()

    thread = threading.Thread(target=library)
    thread.start()
    with log_fields(run="r", worker="w"), log_fields(shard="s", image_id="i"):
        ready.set()
        assert logged.wait(30)
    thread.join()
    (entry,) = lines()
    assert (entry["run"], entry["worker"]) == ("r", "w")
    assert "shard" not in entry
    assert "image_id" not in entry


def test_threads_of_two_workers_do_not_mix():
    def work(name):
        with log_fields(worker=name):
            barrier.wait(30)
            found = current_fields()["worker"]
            barrier.wait(30)
            return found

    barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, "ab")) == ["a", "b"]
    assert current_fields() == {}


def test_a_generator_may_end_in_another_thread():
    def numbers():
        with log_fields(run="r"):
            yield 1
            yield 2

    running = numbers()
    next(running)
    in_thread(running.close)
    assert current_fields() == {}
    with log_fields(run="s"):
        assert current_fields() == {"run": "s"}


def test_errors_have_their_type_text_and_traceback(lines):
    try:
        try:
            raise OSError("the cause")
        except OSError as error:
            raise ValueError("what failed") from error
    except ValueError:
        log.exception("no luck")
    (entry,) = lines()
    assert (entry["message"], entry["error_type"], entry["error"]) == ("no luck", "ValueError", "what failed")
    assert "the cause" in entry["traceback"]
    assert "test_logs.py" in entry["traceback"]


class Unshowable(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize("as_json", [True, False])
def test_a_line_that_cannot_be_made_as_meant_is_made_as_well_as_can_be(as_json, capsys):
    logging.getLogger().handlers.clear()  # pytest's own raise what a handler should survive
    configure_logging("INFO", as_json)
    log.warning("%d apples", "three")
    log.warning("failed", exc_info=Unshowable())
    log.warning("nothing to show", exc_info=True)
    err = capsys.readouterr().err
    assert "%d apples" in err
    assert "three" in err
    assert "Unshowable" in err
    assert "nothing to show" in err
    assert "Logging error" not in err


@pytest.mark.parametrize("as_json", [True, False])
def test_secrets_are_taken_out_everywhere(as_json, capsys):
    configure_logging("INFO", as_json)
    url = "https://host/x?X-Amz-Signature=hush&a=b"
    with log_fields(image_id=url):
        try:
            raise ValueError(url)
        except ValueError:
            log.exception("%s", url, stack_info=True)
    err = capsys.readouterr().err
    assert "hush" not in err
    assert err.count("X-Amz-Signature=***") >= 3


def test_levels(capsys):
    for level in ("INFO", logging.INFO):
        configure_logging(level, as_json=False)
        log.debug("no")
        log.info("ours")
        logging.getLogger("botocore.auth").info("theirs")
        logging.getLogger("botocore.auth").warning("a warning of theirs")
        assert capsys.readouterr().err.splitlines() == [
            "INFO data_engine.somewhere: ours",
            "WARNING botocore.auth: a warning of theirs",
        ]
    configure_logging("DEBUG", as_json=False)
    logging.getLogger("botocore.auth").debug("signed")
    log.debug("yes")
    assert capsys.readouterr().err == "DEBUG data_engine.somewhere: yes\n"
    configure_logging("ERROR", as_json=False)
    log.warning("no")
    logging.getLogger("botocore.auth").warning("no")
    assert capsys.readouterr().err == ""


def test_the_last_configuration_counts(capsys):
    assert not logs_are_json()
    for as_json in (True, False, True):
        configure_logging("INFO", as_json)
        assert logs_are_json() is as_json
    log.warning("once")
    assert json.loads(capsys.readouterr().err)["message"] == "once"


def test_plain_lines_show_fields_and_follow_a_replaced_stderr(capsys, monkeypatch):
    configure_logging("INFO", as_json=False)
    with log_fields(shard="s", image_id="a b"):
        log.warning("x")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", sys.stdout)
            log.warning("y")
    out, err = capsys.readouterr()
    assert err == "WARNING data_engine.somewhere: x [shard=s image_id=a b]\n"
    assert out == "WARNING data_engine.somewhere: y [shard=s image_id=a b]\n"


def test_warnings_are_lines_too(lines):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", FutureWarning, stacklevel=1)
    (entry,) = lines()
    assert entry["level"] == "WARNING"
    assert "old" in entry["message"]


def test_every_line_of_a_process_is_json():
    """Lines of many threads at once do not cut each other."""
    code = (
        "import logging, threading\n"
        "from data_engine.pipeline.logs import configure_logging, log_fields\n"
        "configure_logging('INFO', as_json=True)\n"
        "def work(n):\n"
        "    with log_fields(shard=str(n)):\n"
        "        for i in range(200): logging.getLogger('data_engine').info('%s', str(n) * 300)\n"
        "threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    entries = [json.loads(line) for line in run.stderr.splitlines()]
    assert len(entries) == 1000
    assert all(entry["message"] == entry["shard"] * 300 for entry in entries)
