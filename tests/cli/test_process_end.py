"""A command's exit code is that of its work, whatever Arrow's threads still hold when it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A read whose threads let go of a Python file after it has returned: without `run_as_process`, most ends are SIGABRT.
READS = """
import atexit, sys, tempfile
import pyarrow as pa, pyarrow.dataset as pad, pyarrow.parquet as pq
from fsspec.implementations.dirfs import DirFileSystem
import fsspec
from data_engine.cli.process_end import run_as_process

folder = tempfile.mkdtemp()
pq.write_table(pa.table({"a": list(range(1000))}), folder + "/a.parquet")

def run():
    atexit.register(print, "the others' handlers run", file=sys.stderr)
    store = DirFileSystem(folder, fsspec.filesystem("file"))
    pad.dataset(["a.parquet"], format="parquet", filesystem=store).to_table()
    print("done")
    ENDS

run_as_process(run)
"""


def ended(ends: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", READS.replace("ENDS", ends)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("ends", "code"), [("return 3", 3), ("sys.exit(2)", 2), ("return None", 0)])
def test_the_exit_code_survives_threads_of_arrow(ends, code):
    for _ in range(3):
        assert ended(ends) == (code, "done\n", "the others' handlers run\n")


def test_an_error_that_nothing_caught_is_said():
    code, _, said = ended("raise OSError('full')")
    assert code in {1, -6}
    assert "OSError: full" in said


def test_a_word_as_the_exit_code_is_said():
    code, _, said = ended("sys.exit('why')")
    assert (code, said.splitlines()[-2:]) == (1, ["why", "the others' handlers run"])
