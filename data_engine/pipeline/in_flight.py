"""What a local run is working on at this moment, kept in a small file where the next run finds it if this one dies.

A line a thread, overwritten in place and never synced: what a process has written outlives it in the kernel's memory.
It does not outlive a power cut, and then no image is to blame. A run that ends, however badly, removes its file; only
one whose process died leaves it. The file is locked as long as its process lives.
"""

from __future__ import annotations

import faulthandler
import fcntl
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from data_engine.pipeline.run_log import RUNS_FOLDER
from data_engine.storage import is_local, join, local_path

log = logging.getLogger(__name__)

Position = tuple[str, int]  # (shard, number of the image in it, or `reading` of that)

_SUFFIX = ".in-flight"
_LINE = re.compile(rb"([+!-]) ([0-9a-f]{16}) +(-?\d+)")
_BYTES = 32  # of a line: mark, shard, number
_CRASH = re.compile(rb"^Fatal Python error: (.+)$", re.MULTILINE)
_TOLD = b"told to stop\n"
_AMONG_OTHERS, _ALONE, _THROUGH = "+!-"


def reading(number: int) -> int:
    """Stands in a Position for an image that is being read from its tar or Parquet file, and is not there yet. Its own
    inverse."""
    return ~number


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine since it was started: what tells a killed process from a power cut, and who killed it."""

    boot: str | None
    oom_kills: int | None
    """Processes that the kernel has killed for want of memory."""

    @classmethod
    def now(cls) -> Machine:
        """What Linux says; None where there is no such file."""
        boot = oom_kills = None
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        with suppress(OSError):
            found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
            oom_kills = int(found[1]) if found else None
        return cls(boot, oom_kills)


@dataclass(frozen=True, slots=True)
class DeadRun:
    """What a run left whose process died."""

    file: Path
    machine: Machine
    crash: str | None
    """The fatal signal that it caught, such as "Segmentation fault"."""
    told_to_stop: bool
    """It had been asked to end, and somebody may have lost patience."""
    held: tuple[tuple[Position, bool], ...]
    """The images it was working on, and whether each was alone in the process."""
    through: frozenset[Position]
    """Suspects that it was done with."""


class InFlight:
    """Notes, from any thread, what is begun and done. Without a file it notes nothing."""

    def __init__(self, file: BinaryIO | None = None, first: int = 0, lines: int = 0) -> None:
        """file: with `lines` empty lines from byte `first` on."""
        self._file = file
        self._free = [first + _BYTES * line for line in reversed(range(lines))]
        self._lock = threading.Lock()
        self._told = False

    @contextmanager
    def at(self, shard: str, number: int, alone: bool = False) -> Iterator[None]:
        """An image is being worked on inside the block: if the process dies, it may be what killed it."""
        with self._lock:
            place = self._free.pop() if self._file is not None and self._free else None
        self._write(place, _line(_ALONE if alone else _AMONG_OTHERS, shard, number))
        try:
            yield
        finally:
            self._write(place, b" " * (_BYTES - 1) + b"\n")
            if place is not None:
                with self._lock:
                    self._free.append(place)

    def through(self, shard: str, number: int) -> None:
        """A suspect was harmless: what was charged to it is forgotten."""
        self._append(_line(_THROUGH, shard, number))

    def told_to_stop(self) -> None:
        """If the process is killed from now on, it is not for an image."""
        if not self._told:
            self._told = True
            self._append(_TOLD)

    def _append(self, line: bytes) -> None:
        if self._file is not None:
            self._write(os.fstat(self._file.fileno()).st_size, line)

    def _write(self, place: int | None, line: bytes) -> None:
        if self._file is None or place is None:
            return
        try:
            os.pwrite(self._file.fileno(), line, place)
        except OSError as error:  # a full disk, as a rule: the job is not to end for this
            log.debug("what is in flight was not noted: %s", error)


def notes_folder(output: str, fingerprint: str) -> Path | None:
    """Where the runs of a dataset keep their files: beside it, or on this machine where it is in a store.

    None where there is no home.
    """
    if is_local(output):
        return local_path(join(output, RUNS_FOLDER))
    from data_engine.sam.checkpoints import cache_dir  # brings torch

    key = hashlib.sha256(f"{output}\n{fingerprint}".encode()).hexdigest()[:32]
    try:
        return cache_dir() / "runs" / key
    except RuntimeError:
        return None


@contextmanager
def kept_in_flight(folder: Path | None, run_id: str, threads: int) -> Iterator[InFlight]:
    """An InFlight for a process that works on as many images at a time as it has `threads`.

    Where its file cannot be written or locked, it notes nothing.
    """
    with ExitStack() as stack:
        try:
            in_flight = _open(folder, run_id, threads, stack) if folder is not None else InFlight()
        except OSError as error:
            log.warning("%s: what is in flight cannot be noted there (%s)", folder, error.strerror or error)
            in_flight = InFlight()
        yield in_flight


def dead_runs(folder: Path | None) -> list[DeadRun]:
    """What runs have left whose processes are dead, the oldest first."""
    if folder is None or not folder.is_dir():
        return []
    found = [_read(path) for path in sorted(folder.glob(f"*{_SUFFIX}"))]  # their names begin with the time
    return [run for run in found if run is not None]


def _open(folder: Path, run_id: str, threads: int, stack: ExitStack) -> InFlight:
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / f"{run_id}{_SUFFIX}", folder / f".{run_id}{_SUFFIX}.tmp"
    header = json.dumps(asdict(Machine.now())).encode() + b"\n"
    stack.callback(path.unlink, missing_ok=True)
    stack.callback(temporary.unlink, missing_ok=True)
    file = stack.enter_context(open(temporary, "w+b", buffering=0))  # noqa: SIM115 (the stack)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.write(header + (b" " * (_BYTES - 1) + b"\n") * threads)
    temporary.rename(path)  # it is never there without its lock
    if not faulthandler.is_enabled():  # else whoever has enabled it wants to read it elsewhere
        crash = stack.enter_context(open(path, "ab", buffering=0))  # noqa: SIM115
        faulthandler.enable(crash, all_threads=False)
        stack.callback(faulthandler.disable)
    return InFlight(file, len(header), threads)


def _read(path: Path) -> DeadRun | None:
    """None for a run that lives, and for a file that is none of ours or cannot be read."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            data = file.read()
        machine = Machine(**json.loads(data.partition(b"\n")[0]))
    except (OSError, ValueError, TypeError):
        return None
    entries = [(mark.decode(), (shard.decode(), int(number))) for mark, shard, number in _LINE.findall(data)]
    crash = _CRASH.search(data)
    return DeadRun(
        file=path,
        machine=machine,
        crash=crash[1].decode(errors="replace").strip() if crash else None,
        told_to_stop=b"\n" + _TOLD in data,
        held=tuple((position, mark == _ALONE) for mark, position in entries if mark != _THROUGH),
        through=frozenset(position for mark, position in entries if mark == _THROUGH),
    )


def _line(mark: str, shard: str, number: int) -> bytes:
    return f"{mark} {shard:.16} {number:12d}\n".encode()
