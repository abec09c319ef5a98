"""The viewer as an ASGI application: pages, static files, API, and the guard in front of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route

from data_engine.viewer import api, audit_api, correct_api
from data_engine.viewer.guard import Guard
from data_engine.viewer.pages import page, static_files
from data_engine.viewer.run import ViewedRun

# Each offers routes of its own; the package's docstring says how.
EXTRA: tuple[Callable[[Sequence[ViewedRun]], list[BaseRoute]], ...] = (audit_api.routes, correct_api.routes)


def create_app(runs: Sequence[ViewedRun], token: str, port: int, once: str | None = None) -> Starlette:
    """The application for one dataset, or two of the same images. `once` is a token that opens it a single time."""
    extra = [route for offer in EXTRA for route in offer(runs)]
    pages = [route.path for route in extra if isinstance(route, Route) and not route.path.startswith("/api/")]
    return Starlette(
        routes=[Route("/", page("index.html")), *api.routes(runs, pages), *extra, static_files()],
        middleware=[Middleware(Guard, token=token, port=port, once=once)],
    )
