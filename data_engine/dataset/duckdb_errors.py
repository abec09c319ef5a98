"""Errors of DuckDB, which gives the traceback of whatever a file system in Python raised."""

from __future__ import annotations

_TRACEBACK = "Traceback (most recent call last)"


def said_by(error: Exception) -> str:
    """What is wrong, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip() if of_store(error) else lines[0]


def of_store(error: Exception) -> bool:
    """Whether a store refused, which is the only Python that DuckDB runs."""
    return _TRACEBACK in str(error)
