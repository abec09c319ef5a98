"""The entry point: runs a command, turns errors into one line and an exit code."""

from __future__ import annotations

import io
import os
import shlex
import sys
import traceback
from contextlib import suppress

import typer
from rich.text import Text

from data_engine.cli.app import app, err
from data_engine.cli.process_end import run_as_process
from data_engine.errors import DataEngineError, UsageError
from data_engine.signed_urls import unsigned
from data_engine.storage import redact

STOPPED = 130  # exit code, as a shell gives it for SIGINT
# What they have finished stays, and is not done again.
RESUMABLE = {"generate", "replay", "apply-corrections", "export", "train", "loop"}


def command() -> None:
    """What a shell calls: `main` as a process of its own."""
    run_as_process(main)


def main() -> None:
    """Turns errors into one line and an exit code, which it leaves with (SystemExit)."""
    debug = "--debug" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text
    try:
        code = app(standalone_mode=False) or 0  # the code of a typer.Exit
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except DataEngineError as error:
        if debug:
            _print_traceback(error)
        else:
            err.print(Text.assemble(("error:", "red"), " ", redact(str(error))), soft_wrap=True)
        code = 2 if isinstance(error, UsageError) else 1
    except Exception as error:
        code = _click_error(error)
        if code is None:
            _print_traceback(error)
            code = 1
    if code == STOPPED:
        _say_stopped()
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    if code == STOPPED:
        os._exit(code)  # without waiting for threads that read from a store that has stopped sending
    sys.exit(code)


def _say_stopped() -> None:
    """With the command to run again, without the secrets of signed links, where that goes on."""
    given = sys.argv[1:]
    command = next((argument for argument in given if not argument.startswith("-")), "")
    if command not in RESUMABLE:
        err.print("Stopped.")
        return
    shown = [redact(unsigned(argument)) for argument in given]
    err.print("Stopped. What is committed is safe; the same command goes on:", soft_wrap=True)
    err.print(f"  {shlex.join(['data-engine', *shown])}", soft_wrap=True)
    if shown != given:
        err.print("  (with its links signed, anew if they have expired)", soft_wrap=True)


def _print_traceback(error: Exception) -> None:
    """As the interpreter does, but for the secrets that messages of libraries carry."""
    sys.stderr.write(redact("".join(traceback.format_exception(error))))


def _click_error(error: Exception) -> int | None:
    """Click's own usage errors know how to show themselves. Typer carries a click of its own, without a public name."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return int(error.exit_code)
    return None
