"""The processes of this machine or container, from /proc. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def processes(proc: Path = Path("/proc")) -> Iterator[tuple[int, list[str]]]:
    """Process id and command line of every process that can be read."""
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended, or is not ours to read
            continue
        yield int(folder.name), [part.decode(errors="replace") for part in command.split(b"\0") if part]


def raylet_node_ids(proc: Path = Path("/proc")) -> list[str]:
    """Ids of the Ray nodes that run here: one, outside of tests."""
    ids = []
    for _, command in processes(proc):
        if command and Path(command[0]).name == "raylet":
            ids += [part.partition("=")[2] for part in command if part.startswith("--node_id=")]
    return ids
