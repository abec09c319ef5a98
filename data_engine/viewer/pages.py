"""The files of `static/`: pages, and what they load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).parent / "static"


def page(name: str) -> Callable[[Request], Response]:
    """The endpoint of a page in `static/`."""

    def endpoint(_: Request) -> Response:
        return FileResponse(STATIC / name, media_type="text/html; charset=utf-8")

    return endpoint


def static_files() -> BaseRoute:
    """Everything in `static/` under `/static`, nothing beside it."""
    return Mount("/static", StaticFiles(directory=STATIC))
