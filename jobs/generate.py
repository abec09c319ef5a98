"""What a Ray job runs: `data-engine generate INPUT OUTPUT …` on the cluster that the job was submitted to.

A job server knows success and failure, and what failed is run again. Exit code 3 (finished, some images failed) is an
end that a second run does not change, so it counts as success here; the failed images are rows of the dataset.
"""

from __future__ import annotations

import sys

from data_engine.cli import main
from data_engine.cli.process_end import run_as_process

FINISHED_WITH_FAILED_IMAGES = 3


def run(arguments: list[str]) -> int:
    """Exit code for the job server."""
    sys.argv = ["data-engine", "generate", *arguments, "--engine", "ray"]
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return 0 if code == FINISHED_WITH_FAILED_IMAGES else code
    return 0


if __name__ == "__main__":
    run_as_process(lambda: run(sys.argv[1:]))
