"""The sha256 of a file, and remembering it: hashing gigabytes at every start of every worker takes seconds each.

A remembered digest counts only while the file is the one that was hashed, by size, times and inode, and only if this
user wrote it down.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from data_engine.errors import CheckpointError

_BLOCK = 1 << 20
_TIMESTAMPS_DIFFER_AFTER_S = 2.0  # the coarsest file systems count in steps of two seconds


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_cached(path: Path) -> str:
    """The hex sha256 of a file in the cache, from the note beside it while that holds.

    Raises CheckpointError for a file that is not what it was when it was noted.
    """
    identity, note = _identity(path), _read_note(path)
    if note and note["file"] == identity:
        return str(note["sha256"])
    found = sha256_of(path)
    if note and note["sha256"] != found:
        raise CheckpointError(
            f"{path} is damaged: its sha256 is {found}, and was {note['sha256']} when it was fetched. "
            "Delete the file; it will be fetched again."
        )
    if identity == _identity(path):
        note_sha256(path, found)
    return found


def note_sha256(path: Path, sha256: str) -> None:
    """Writes down, beside `path`, what it was found to be. Not being able to costs time later and nothing else."""
    if time.time() - path.stat().st_mtime < _TIMESTAMPS_DIFFER_AFTER_S:
        return  # whatever changes it now may leave the same time behind
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with suppress(OSError):
        temporary.write_text(json.dumps({"sha256": sha256, "file": _identity(path)}))
        temporary.replace(_note_file(path))


def _note_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _read_note(path: Path) -> dict[str, object] | None:
    """The note beside `path`, if there is a whole one, by this user: in a shared cache, others' word is not taken."""
    try:
        with _note_file(path).open("rb") as file:
            if hasattr(os, "getuid") and os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            note = json.loads(file.read(4096))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and isinstance(note.get("sha256"), str) and "file" in note else None


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
