"""A driver process of its own: python ray_driver.py ADDRESS INPUT OUTPUT FOLDER OVERRIDE…

Prints "started" once images are being masked, and ends with the exit code that the command line would give.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ray
from integration.ray_job import arm, cluster_config

from data_engine.errors import DataEngineError
from data_engine.pipeline.events import Event, ImageDone
from data_engine.pipeline.job import generate
from data_engine.pipeline.progress import Progress


class Loud(Progress):
    said = False

    def event(self, event: Event) -> None:
        if isinstance(event, ImageDone) and not self.said:
            print("started", flush=True)
            self.said = True
        super().event(event)


def main() -> None:
    address, source, output, folder, *overrides = sys.argv[1:]
    if "JOINS" in os.environ:  # the job does it, as from the command line; its workers are not armed
        overrides.append(f"run.ray.address={address}")
    else:
        ray.init(address=address, log_to_driver=False, runtime_env={"worker_process_setup_hook": arm})
    try:
        report = generate(source, output, cluster_config(Path(folder), *overrides), progress=Loud.silent())
    except DataEngineError as error:
        print(error, flush=True)
        sys.exit(1)
    sys.exit(report.exit_code)


if __name__ == "__main__":
    main()
