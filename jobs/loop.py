"""What a Ray job runs: `data-engine loop INPUT OUTPUT …`, its masks made on the cluster that the job was submitted to.

OUTPUT is a URL, or a folder on a file system that all nodes share. Exit code 4 (waiting for the masks of people)
is an end that a second run does not change, so it counts as success here; the log says what is waited for.
"""

from __future__ import annotations

import sys

from data_engine.cli import main
from data_engine.cli.process_end import run_as_process

WAITING_FOR_PEOPLE = 4


def run(arguments: list[str]) -> int:
    """Exit code for the job server."""
    sys.argv = ["data-engine", "loop", *arguments, "--set", "generate.run.engine=ray"]
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return 0 if code == WAITING_FOR_PEOPLE else code
    return 0


if __name__ == "__main__":
    run_as_process(lambda: run(sys.argv[1:]))
