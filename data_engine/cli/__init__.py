"""The `data-engine` command: parses, calls, prints. What it prints on stdout is the result, progress goes to stderr.

One file a command; each adds itself to the app.
"""

from data_engine.cli import bench, config, dataset, doctor, evaluate, export, generate, models
from data_engine.cli.app import app
from data_engine.cli.entry import main

__all__ = ["app", "bench", "config", "dataset", "doctor", "evaluate", "export", "generate", "main", "models"]
