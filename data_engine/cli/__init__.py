"""The `data-engine` command: parses, calls, prints. What it prints on stdout is the result, progress goes to stderr.

One file a command; each adds itself to the app.
"""

from data_engine.cli import (
    apply_corrections,
    audit_sample,
    bench,
    config,
    dataset,
    dedup,
    doctor,
    evaluate,
    export,
    generate,
    loop,
    models,
    replay,
    report,
    sql,
    train,
    view,
)
from data_engine.cli.app import app
from data_engine.cli.entry import command, main

__all__ = [
    "app",
    "apply_corrections",
    "audit_sample",
    "bench",
    "command",
    "config",
    "dataset",
    "dedup",
    "doctor",
    "evaluate",
    "export",
    "generate",
    "loop",
    "main",
    "models",
    "replay",
    "report",
    "sql",
    "train",
    "view",
]
