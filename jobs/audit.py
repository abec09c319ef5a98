"""What a Ray job runs: `data-engine audit OUTPUT`, near the data. Fails unless nothing is lost, doubled or damaged."""

from __future__ import annotations

import sys

from data_engine.cli import command

if __name__ == "__main__":
    sys.argv = ["data-engine", "audit", *sys.argv[1:]]
    command()
