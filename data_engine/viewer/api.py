"""The routes under `/api`: what the page asks for, as JSON and JPEG.

Images are named by id, never by path: only what the dataset's plan lists can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from data_engine import __version__
from data_engine.errors import DataEngineError, UsageError
from data_engine.images.shard import ImageError
from data_engine.storage import redact
from data_engine.viewer.order import Query
from data_engine.viewer.originals import Missing
from data_engine.viewer.run import ViewedRun

_MOST_AT_ONCE = 500
_SIDES = (0, 160, 320, 2048)
# A browser keeps pictures by address, and the next viewer on this port may show another dataset: its token differs.
_KEPT = {"Cache-Control": "private, max-age=3600", "Vary": "Authorization, Cookie"}

Handler = Callable[[Request], Response]


class NotFound(DataEngineError):
    """Asked for a run or an image that there is not."""


def routes(runs: Sequence[ViewedRun], pages: Sequence[str] = ()) -> list[BaseRoute]:
    """The first run is the one that is looked at, a second the one beside it. `pages`: what else can be opened."""

    def run_of(request: Request) -> ViewedRun:
        number = _number(request, "run", 0)
        if number >= len(runs):
            raise NotFound(f"run {number}: there are {len(runs)}")
        return runs[number]

    def info(_: Request) -> Response:
        return JSONResponse({"version": __version__, "pages": list(pages), "runs": [run.facts() for run in runs]})

    def refresh(request: Request) -> Response:
        for run in runs:
            run.refresh()
        return info(request)

    def images(request: Request) -> Response:
        asked = request.query_params
        query = Query(
            search=asked.get("search", ""),
            sort=asked.get("sort", "dataset"),  # type: ignore[arg-type]  # checked by Query
            descending=asked.get("descending") == "1",
            status=asked.get("status", "all"),  # type: ignore[arg-type]
        )
        run = run_of(request)
        other = next((beside for beside in runs if beside is not run), None)
        limit = max(1, min(_number(request, "limit", 100), _MOST_AT_ONCE))
        around = asked.get("around")
        return JSONResponse(run.page(query, _number(request, "offset", 0), limit, other, around))

    def image(request: Request) -> Response:
        return JSONResponse(run_of(request).image(_image_id(request), _hint(request)))

    def picture(request: Request) -> Response:
        side = _number(request, "side", 0)
        if side not in _SIDES:
            raise UsageError(f"side={side}: use one of {', '.join(map(str, _SIDES))}")
        shown = run_of(request).picture(_image_id(request), side, _hint(request))
        if isinstance(shown, Missing):
            return JSONResponse({"error": redact(shown.reason)}, 404)
        return Response(shown, media_type="image/jpeg", headers=_KEPT)

    return [
        Route("/api/info", answered(info)),
        Route("/api/refresh", answered(refresh), methods=["POST"]),
        Route("/api/images", answered(images)),
        Route("/api/image", answered(image)),
        Route("/api/picture", answered(picture)),
    ]


def answered(handler: Handler) -> Handler:
    """Errors as JSON: {"error": what, where and what to do}. Starlette runs plain functions in threads."""

    def answer(request: Request) -> Response:
        try:
            return handler(request)
        except (NotFound, ImageError) as error:
            return _error(error, 404)
        except KeyError as error:
            return _error(f"no image {error.args[0]!r} in this dataset", 404)
        except UsageError as error:
            return _error(error, 400)
        except DataEngineError as error:
            return _error(error, 500)
        except (pa.ArrowException, OSError) as error:
            return _error(f"a file of the dataset is damaged or gone ({error}); `data-engine audit` says which", 500)

    return answer


def _error(what: Any, status: int) -> Response:
    return JSONResponse({"error": redact(str(what))}, status)


def _image_id(request: Request) -> str:
    image_id = request.query_params.get("id")
    if image_id is None:
        raise UsageError("id is missing: name an image")
    return image_id


def _hint(request: Request) -> int | None:
    return _number(request, "position", 0) if "position" in request.query_params else None


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise UsageError(f"{name}={text!r}: use a whole number, 0 or more")
    return int(text)
