"""Stop data-engine's driver on this machine as SIGTERM does, and wait until it has ended.

For the preStop hook of a head pod: workers commit what they have before the cluster goes. The driver then ends with
exit code 130, so that the job counts as failed and is tried again, which resumes it. `ray job stop` would end it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence

from processes import processes


def is_driver(command: Sequence[str]) -> bool:
    """A Python that runs jobs/generate.py, jobs/loop.py or the command itself; not the shell that started it.

    `ray job submit --working-dir jobs` runs the files without their folder.
    """
    if not command or "python" not in command[0].rpartition("/")[2]:
        return False
    script = next((part for part in command[1:] if not part.startswith("-")), "")
    name = script.rpartition("/")[2]
    return name in {"generate.py", "loop.py"} or (name == "data-engine" and bool({"generate", "loop"} & set(command)))


def drivers() -> list[int]:
    return [pid for pid, command in processes() if pid != os.getpid() and is_driver(command)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deadline", type=float, default=100, help="seconds to wait for it")
    arguments = parser.parse_args()
    stopped = drivers()
    for pid in stopped:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:  # it has just ended
            continue
    end = time.monotonic() + arguments.deadline
    while set(stopped) & set(drivers()) and time.monotonic() < end:
        time.sleep(0.5)
    sys.stderr.write(f"{len(stopped)} drivers stopped\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
