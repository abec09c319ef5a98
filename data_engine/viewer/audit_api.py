"""The routes of the audit page: what is to be judged, and the answers.

The page is told nothing that could sway a person: no scores, nobody else's verdicts, and the estimate only when all of
the sample is judged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from threading import Lock
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from data_engine.errors import UsageError
from data_engine.human_audit.answers import (
    REASONS,
    Answer,
    AnswerBook,
    AnswerSession,
    Key,
    checked_person,
    last_answers,
    now_after,
)
from data_engine.human_audit.crop import window
from data_engine.human_audit.report import make_report
from data_engine.human_audit.report_table import as_json, drawn
from data_engine.human_audit.sample import Sample, audit_names, read_sample
from data_engine.viewer.api import NotFound, answered
from data_engine.viewer.pages import page
from data_engine.viewer.run import ViewedRun

_MOST_BYTES = 64 << 10  # of an answer


class Audit:
    """One audit of the dataset that is looked at. Safe among threads."""

    def __init__(self, run: ViewedRun, sample: Sample) -> None:
        self.sample = sample
        self._run = run
        self._book = AnswerBook(sample.root, sample.facts.name)
        self._sessions: dict[str, AnswerSession] = {}
        self._last: dict[tuple[str, Key], datetime] = {}  # when a person answered to a mask, as far as is known here
        self._lock = Lock()

    def state(self, who: str) -> dict[str, Any]:
        """What a person has answered, by position."""
        positions = {key: position for position, key in enumerate(self.sample.keys)}
        own = last_answers(self._read()).get(who, {})
        return {
            "name": self.sample.facts.name,
            "masks": self.sample.facts.masks,
            "drawn": drawn(self.sample.facts),
            "reasons": REASONS,
            "answers": {
                positions[key]: {"verdict": answer.verdict, "reason": answer.reason, "note": answer.note}
                for key, answer in own.items()
                if key in positions
            },
        }

    def mask(self, position: int) -> dict[str, Any]:
        """What is shown of a mask: itself, its image's place in the dataset, and the window around it."""
        row = self._row(position)
        box = [row[name] for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h")]
        return {
            "position": position,
            "image_id": row["image_id"],
            "mask_id": row["mask_id"],
            "width": row["width"],
            "height": row["height"],
            "window": window((box[0], box[1], box[2], box[3]), row["width"], row["height"]),
            "image_position": self._image_position(row["shard"], row["slice"], row["row"]),
            "masks": {"counts": [row["counts"]], **{f"bbox_{axis}": [box[i]] for i, axis in enumerate("xywh")}},
        }

    def answer(self, given: dict[str, Any]) -> dict[str, Any]:
        """Stores an answer of the page. It is durable when this returns. Raises UsageError for what is none."""
        who = checked_person(_text(given, "who"))
        image_id, mask_id = key = self.sample.keys[self._checked(given.get("position"))]
        seconds = given.get("seconds")
        if seconds is not None and not isinstance(seconds, (int, float)):
            raise UsageError(f"seconds {seconds!r}: use a number")
        answer = Answer(
            image_id=image_id,
            mask_id=mask_id,
            who=who,
            verdict=_text(given, "verdict"),
            reason=_text(given, "reason") or None,
            note=_text(given, "note").strip() or None,
            seconds=seconds,
            answered_at=now_after(self._last.get((who, key))),
        )
        with self._lock:
            self._last[who, key] = answer.answered_at
            session = self._sessions.setdefault(who, AnswerSession(self.sample.root, self.sample.facts.name))
        session.add([answer])
        return {"stored": given["position"]}

    def report(self, who: str) -> dict[str, Any]:
        """Everyone's answers together. Raises UsageError as long as `who` has masks to judge."""
        answers = self._read()
        left = self.sample.facts.masks - len(last_answers(answers).get(who, {}).keys() & set(self.sample.keys))
        if left:
            raise UsageError(
                f"{left:,} masks are left to judge: the estimate is shown at the end, so as not to sway you"
            )
        return as_json(make_report(self.sample, answers))

    def _read(self) -> list[Answer]:
        with self._lock:
            answers = self._book.read()
            self._last.update({(answer.who, answer.key): answer.answered_at for answer in answers})
        return answers

    def _row(self, position: int) -> dict[str, Any]:
        row: dict[str, Any] = self.sample.masks.slice(self._checked(position), 1).to_pylist()[0]
        return row

    def _checked(self, position: Any) -> int:
        if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position < self.sample.facts.masks:
            raise NotFound(f"position {position!r}: the sample has 0 to {self.sample.facts.masks - 1}")
        return position

    def _image_position(self, shard: str, slice_: int, row: int) -> int | None:
        """Where the image is in the viewer's index, None where its slice is not there any more."""
        index = self._run.index
        for number, record in enumerate(index.records):
            if (record.shard, record.slice) == (shard, slice_):
                return int(index.starts[number]) + row
        return None


def routes(runs: Sequence[ViewedRun]) -> list[BaseRoute]:
    """The page and its routes, for the first run."""
    root = runs[0].root
    known: dict[str, Audit] = {}

    def audit(name: str) -> Audit:
        if name not in known:
            sample = read_sample(root, name)
            if sample is None:
                raise NotFound(f"{root} has no audit named {name!r}: data-engine audit-sample draws one")
            known.setdefault(name, Audit(runs[0], sample))
        return known[name]

    def of(request: Request) -> Audit:
        return audit(_asked(request, "name"))

    async def answer(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MOST_BYTES:
                return JSONResponse({"error": f"an answer has at most {_MOST_BYTES:,} bytes"}, 413)
        return await run_in_threadpool(_json(lambda _: _store(audit, bytes(body))), request)

    return [
        Route("/audit", page("audit.html")),
        Route("/api/audits", _json(lambda _: {"root": root, "names": audit_names(root)})),
        Route("/api/audit", _json(lambda request: of(request).state(_asked(request, "who")))),
        Route("/api/audit/mask", _json(lambda request: of(request).mask(_position(request)))),
        Route("/api/audit/report", _json(lambda request: of(request).report(_asked(request, "who")))),
        Route("/api/audit/answer", answer, methods=["POST"]),
    ]


def _store(audit: Callable[[str], Audit], body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("an answer is a JSON object; this is no JSON") from None
    if not isinstance(given, dict):
        raise UsageError("an answer is a JSON object")
    return audit(_text(given, "name")).answer(given)


def _json(handler: Callable[[Request], Any]) -> Callable[[Request], Response]:
    """What the handler returns, as JSON; errors too."""
    return answered(lambda request: JSONResponse(handler(request)))


def _asked(request: Request, name: str) -> str:
    value = request.query_params.get(name)
    if not value:
        raise UsageError(f"{name} is missing")
    return value


def _position(request: Request) -> int:
    text = _asked(request, "position")
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise UsageError(f"position={text!r}: use a whole number, 0 or more")
    return int(text)


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name) or ""
    if not isinstance(value, str):
        raise UsageError(f"{name} {value!r}: use text")
    return value
