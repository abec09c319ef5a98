"""Placeholder until the JSON formatter is here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_fields(**fields: str) -> Iterator[None]:
    yield


def configure_logging(level: int, as_json: bool) -> None:
    logging.basicConfig(level=level)


def logs_are_json() -> bool:
    return False
