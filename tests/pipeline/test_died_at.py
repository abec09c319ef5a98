"""Which image earlier runs died at: notes of real processes that really die, and what the next run makes of them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data_engine.pipeline.died_at import DEATHS, KILLS, Verdict, verdict
from data_engine.pipeline.in_flight import InFlight, Machine, dead_runs, kept_in_flight, notes_folder, reading
from data_engine.pipeline.plan import Remaining

SHARD, OTHER = "0123456789abcdef", "fedcba9876543210"
TODO = {SHARD: Remaining(0, 0, None), OTHER: Remaining(0, 0, None)}
# Works on images "shard:number[:alone]" at once, after being through with others, and then ends as it is told to.
PROCESS = """
import ctypes, os, signal, sys
from contextlib import ExitStack
from pathlib import Path
from data_engine.pipeline.in_flight import kept_in_flight
folder, run, how, *images = sys.argv[1:]
with ExitStack() as stack:
    in_flight = stack.enter_context(kept_in_flight(Path(folder), run, 4))
    for image in images:
        shard, number, *mark = image.split(":")
        if mark == ["through"]:
            in_flight.through(shard, int(number))
        elif mark == ["told"]:
            in_flight.told_to_stop()
        else:
            stack.enter_context(in_flight.at(shard, int(number), bool(mark)))
    if how == "crash":
        ctypes.string_at(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "wait":
        print("there", flush=True)
        sys.stdin.read()
    if how == "raise":
        raise SystemExit(1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out" / "_runs"


def run(folder: Path, name: str, how: str, *images: str) -> int:
    command = [sys.executable, "-c", PROCESS, str(folder), name, how, *images]
    return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=60, check=False).returncode


def found(folder: Path, machine: Machine | None = None) -> Verdict:
    return verdict(folder, TODO, machine or Machine.now())


def test_what_a_crash_had_in_flight_is_tried_alone_and_two_crashes_at_one_image_condemn_it(folder: Path) -> None:
    assert run(folder, "1", "crash", f"{SHARD}:4", f"{SHARD}:5", f"{OTHER}:0") == -signal.SIGSEGV
    assert found(folder) == Verdict({SHARD: frozenset({4, 5}), OTHER: frozenset({0})}, {})
    assert run(folder, "2", "crash", f"{SHARD}:4:through", f"{SHARD}:5:alone") == -signal.SIGSEGV
    (reason,) = found(folder).left_out[SHARD].values()
    assert reason == "2 runs ended with their process at this image, the last as it crashed (Segmentation fault)"
    assert found(folder).left_out.keys() == {SHARD}
    assert found(folder).alone == {OTHER: frozenset({0})}
    assert DEATHS == 2  # as the documentation says


def test_crashes_beside_others_condemn_nobody(folder: Path) -> None:
    for name in "123":
        run(folder, name, "crash", f"{SHARD}:4", f"{SHARD}:5")
    assert found(folder) == Verdict({SHARD: frozenset({4, 5})}, {})


def test_one_that_was_harmless_since_starts_anew(folder: Path) -> None:
    run(folder, "1", "crash", f"{SHARD}:4")
    run(folder, "2", "kill", f"{SHARD}:4:through", f"{SHARD}:9")
    run(folder, "3", "crash", f"{SHARD}:4:alone")
    assert found(folder).condemned == 0


def test_kill_9_condemns_only_what_it_meets_alone_again_and_again(folder: Path) -> None:
    for number in range(KILLS):
        assert found(folder).condemned == 0
        assert run(folder, str(number), "kill", f"{SHARD}:4" + (":alone" if number else "")) == -signal.SIGKILL
    assert found(folder).left_out == {
        SHARD: {4: "5 runs ended with their process at this image, the last as it was killed"}
    }


def test_who_is_killed_while_the_kernel_kills_for_memory_counts_as_crashed(folder: Path) -> None:
    for name in "12":
        run(folder, name, "kill", f"{SHARD}:4:alone")
    here = Machine.now()
    assert found(folder, replace(here, oom_kills=0)).condemned == 0
    later = replace(here, oom_kills=(here.oom_kills or 0) + 1)
    if here.oom_kills is None:
        pytest.skip("this system does not count them")
    assert found(folder, later).left_out == {
        SHARD: {4: "2 runs ended with their process at this image, the last as it was killed when memory ran out"}
    }


def test_kills_say_nothing_of_what_was_still_being_read_but_crashes_do(folder: Path) -> None:
    for number in range(KILLS):
        run(folder, str(number), "kill", f"{SHARD}:{reading(4)}:alone")
    assert found(folder) == Verdict({SHARD: frozenset({reading(4)})}, {})
    for number in range(DEATHS):
        run(folder, f"9{number}", "crash", f"{SHARD}:{reading(4)}:alone")
    assert found(folder).left_out[SHARD].keys() == {reading(4)}
    assert verdict(folder, {SHARD: Remaining(1, 5, None)}, Machine.now()) == Verdict()  # it was read since


def test_a_power_cut_is_no_images_fault(folder: Path) -> None:
    for number in range(KILLS):
        run(folder, str(number), "kill", f"{SHARD}:4:alone")
    assert found(folder, replace(Machine.now(), boot="another")) == Verdict()


def test_who_is_killed_after_he_was_told_to_stop_blames_nobody_but_a_crash_counts(folder: Path) -> None:
    for number in range(KILLS):
        run(folder, str(number), "kill", f"{SHARD}:4:alone", f"{SHARD}:4:told")
    assert found(folder) == Verdict()
    run(folder, "8", "crash", f"{SHARD}:4:alone", f"{SHARD}:4:told")
    assert found(folder).suspects == 1


def test_who_ends_by_himself_or_lives_on_is_not_dead(folder: Path) -> None:
    assert run(folder, "1", "raise", f"{SHARD}:4") == 1
    assert list(folder.iterdir()) == []
    command = [sys.executable, "-c", PROCESS, str(folder), "2", "wait", f"{SHARD}:4"]
    living = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert living.stdout is not None
    living.stdout.readline()
    assert found(folder) == Verdict()
    assert len(list(folder.iterdir())) == 1  # and its file is left alone
    living.kill()
    living.wait()
    assert found(folder).suspects == 1


def test_what_is_committed_is_forgotten_with_its_file(folder: Path) -> None:
    run(folder, "1", "kill", f"{SHARD}:4", f"{SHARD}:5")
    machine = Machine.now()
    assert verdict(folder, {SHARD: Remaining(1, 5, None)}, machine) == Verdict({SHARD: frozenset({5})}, {})
    assert verdict(folder, {SHARD: Remaining(1, 6, None)}, machine) == Verdict()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\0" * 400, b'{"boot": 3}', b"[]\n+ 0123456789abcdef 4\n"])
def test_a_damaged_note_is_nobodys_fault(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "1.in-flight").write_bytes(content)
    assert found(folder) == Verdict()


def test_a_folder_that_cannot_be_written_costs_the_notes_and_not_the_job(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for nowhere in (None, tmp_path / "file" / "_runs"):
        with kept_in_flight(nowhere, "1", 2) as in_flight, in_flight.at(SHARD, 1):
            in_flight.through(SHARD, 1)


def test_notes_lie_with_a_local_dataset_and_else_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ENGINE_CACHE", str(tmp_path / "cache"))
    assert notes_folder(str(tmp_path / "out"), "f") == tmp_path / "out" / "_runs"
    folders = {notes_folder(*what) for what in (("s3://b/out", "f"), ("s3://b/out", "g"), ("s3://b/other", "f"))}
    assert len(folders) == 3
    assert all(tmp_path / "cache" in (folder or tmp_path).parents for folder in folders)


def test_many_threads_note_what_they_hold_and_nothing_else(folder: Path) -> None:
    def work(in_flight: InFlight, first: int) -> None:
        for number in range(first, first + 500):
            with in_flight.at(SHARD, number):
                pass

    with kept_in_flight(folder, "1", 5) as in_flight:
        threads = [threading.Thread(target=work, args=(in_flight, 1000 * i)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with in_flight.at(OTHER, 7, alone=True):
            (note,) = folder.iterdir()
            copy = folder / "2.in-flight"
            copy.write_bytes(note.read_bytes())
    (dead,) = dead_runs(folder)
    assert dead.held == (((OTHER, 7), True),)


def test_a_note_costs_microseconds(folder: Path) -> None:
    with kept_in_flight(folder, "1", 1) as in_flight:
        begun = time.perf_counter()
        for number in range(2000):
            with in_flight.at(SHARD, number):
                pass
        assert (time.perf_counter() - begun) / 2000 < 1e-3
