"""The routes of the page where masks are corrected: an image as it stands, the model's answers to clicks, and edits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from threading import Lock
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from data_engine import __version__
from data_engine.corrections.click_model import MaskAnswer, Prompts
from data_engine.corrections.edit_book import EditBook
from data_engine.corrections.edits import ACTIONS, Edit, EditSession, now_after
from data_engine.corrections.painted import painted_mask
from data_engine.corrections.standing import Key, Standing, standing
from data_engine.errors import SourceError, UsageError
from data_engine.human_audit.answers import checked_person
from data_engine.viewer.api import answered
from data_engine.viewer.known_edits import KnownEdits
from data_engine.viewer.originals import Missing
from data_engine.viewer.pages import page
from data_engine.viewer.run import ViewedRun
from data_engine.viewer.turns import Turns

_LOCKS = 64
_MOST_BYTES = 4 << 20  # of a request: a painted mask has run lengths
_OF_MODEL = ("predicted_iou", "stability_score")


class Corrections:
    """The corrections of the dataset that is looked at. Safe among threads."""

    def __init__(self, run: ViewedRun) -> None:
        self._run = run
        self._edits = KnownEdits(EditBook(run.root, run.plan.fingerprint, packs=True))
        self._sessions: dict[str, EditSession] = {}
        self._here: set[str] = set()  # people who have opened the page
        self._turns = Turns()
        # An edit is checked against what stands of its image, and nothing of this server comes in between.
        self._writing = tuple(Lock() for _ in range(_LOCKS))

    def state(self, who: str) -> dict[str, Any]:
        """How far the work is, and the image to begin with: the first that nobody has gone through."""
        checked_person(who)
        self._here.add(who)
        self._run.refresh()  # a dataset may be growing
        done = self._edits.done()
        first = self._left(None, who)
        first = self._run.next_image(-1, 1) if first is None else first
        return {
            "root": self._run.root,
            "model": self._run.model.name,
            "images": self._run.totals.images - self._run.totals.failed,
            "done": len(done),
            "first": None if first is None else self._named(first),
        }

    def following(self, image_id: str, hint: int | None, who: str, step: int, only_left: bool) -> dict[str, Any]:
        """The next image, or the one before; only_left: the next that nobody has gone through."""

        def look() -> int | None:
            position = self._run.find(image_id, hint)[2]
            return self._left(position, who) if only_left else self._run.next_image(position, step)

        found = look()
        if found is None and not self._run.complete:
            self._run.refresh()  # there may be more by now
            found = look()
        return {"image": None if found is None else self._named(found)}

    def _left(self, position: int | None, who: str) -> int | None:
        alone = not (self._edits.people() | self._here) - {who}
        return self._run.next_left(position, self._edits.done(), None if alone else who)

    def image(self, image_id: str, who: str, hint: int | None = None) -> dict[str, Any]:
        """An image as /api/image sends it, with the masks that stand; for each its key, and who made it."""
        found = self._run.image(image_id, hint)
        stands = standing(found["n_masks"], self._edits.of_image(image_id))
        masks: dict[str, list[Any]] = {name: [] for name in (*found["masks"], "key", "who", "made_at")}
        for key, edit in stands.masks.items():
            for name, column in masks.items():
                column.append(_shown(found["masks"], name, key, edit))
        last = stands.last_of.get(who)
        return {
            **found,
            "n_masks": len(stands.masks),
            "masks": {**masks, "mask_id": list(range(len(stands.masks)))},
            "done_by": list(stands.done_by),
            "undo": None if last is None else last.action,
            "done": len(self._edits.done()),
        }

    def prepare(self, image_id: str, hint: int | None, who: str) -> dict[str, Any]:
        """Encodes an image, so that the first click is answered at once. Not if the person has gone on meanwhile."""
        with self._turns.turn(who, image_id) as comes:
            if comes:
                self._run.model.prepare(image_id, lambda: self._pixels(image_id, hint))
        return {"prepared": image_id}

    def answers(self, image_id: str, hint: int | None, given: dict[str, Any]) -> dict[str, Any]:
        """The model's masks for clicks, as columns."""
        found = self._answers(image_id, hint, self._prompts(image_id, hint, given))
        return {"masks": {name: [asdict(answer)[name] for answer in found] for name in MaskAnswer.__dataclass_fields__}}

    def edit(self, image_id: str, hint: int | None, given: dict[str, Any]) -> dict[str, Any]:
        """Stores an edit, which is durable when this returns. Returns the image as it then stands.

        A new mask is made here, from its clicks; one that was painted comes as run lengths. Raises UsageError.
        """
        who, action = checked_person(_text(given, "who")), _text(given, "action")
        if action not in ACTIONS:
            raise UsageError(f"action {action!r}: use one of {', '.join(ACTIONS)}")
        seconds = given.get("seconds")
        if seconds is not None and not (isinstance(seconds, (int, float)) and 0 <= seconds < 86_400):
            raise UsageError(f"seconds {seconds!r}: use 0 or more, and less than a day")
        made = self._made(image_id, hint, given) if action in ("add", "replace") else {}
        with self._writing[hash(image_id) % _LOCKS]:
            row = self._run.image(image_id, hint)
            before = self._edits.of_image(image_id)
            stands = standing(row["n_masks"], before)
            edit = Edit(
                image_id=image_id,
                action=action,
                n_masks=row["n_masks"],
                image_sha256=None if row["sha256"] is None else bytes.fromhex(row["sha256"]),
                who=who,
                edited_at=now_after(before),
                seconds=seconds,
                fingerprint=self._run.plan.fingerprint,
                code_version=__version__,
                **_targets(action, given, stands, who),
                **made,
            )
            self._edits.add(self._sessions.setdefault(who, EditSession(self._run.root)).add(edit))
        return self.image(image_id, who, hint)

    def _made(self, image_id: str, hint: int | None, given: dict[str, Any]) -> dict[str, Any]:
        """Columns of a new mask, and of how it was made: by the model, by a brush, or by one after the other."""
        image = self._run.image(image_id, hint)
        size = {"height": image["height"], "width": image["width"]}
        painted = given.get("painted")
        made: dict[str, Any] = {}
        if painted is None or given.get("points") or given.get("box"):
            prompts = self._prompts(image_id, hint, given)
            found = self._answers(image_id, hint, prompts)
            answer = given.get("answer", 0)
            if painted is None and not found:
                raise UsageError("the model finds nothing there")
            if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < max(len(found), 1):
                raise UsageError(f"answer {answer!r}: the model has given {len(found)}, from 0 on")
            model = {"model": self._run.model.name, "model_sha256": self._run.model.sha256}
            chosen = {**asdict(found[answer]), "answer": answer} if found else {}
            made = {**prompts.columns(), **model, **chosen}
        if painted is None:
            return {**made, **size}
        begun = made.get("counts") or self._counts(image_id, hint, given)
        return {**made, **size, **painted_mask(painted, begun, **size)}

    def _counts(self, image_id: str, hint: int | None, given: dict[str, Any]) -> str | None:
        """Run lengths of the mask that is replaced, on which somebody paints."""
        masks = self.image(image_id, _text(given, "who"), hint)["masks"]
        found = [counts for key, counts in zip(masks["key"], masks["counts"], strict=True) if key == given.get("key")]
        return found[0] if found and given["action"] == "replace" else None

    def _prompts(self, image_id: str, hint: int | None, given: dict[str, Any]) -> Prompts:
        image = self._run.image(image_id, hint)
        if image["status"] != "ok":
            raise UsageError(f"{image_id} failed when it was masked: {image['error_message']}")
        points, box = given.get("points") or [], given.get("box")
        if not isinstance(points, list) or not all(_numbers(point, 3) for point in points):
            raise UsageError("points: a list of [x, y, label]")
        if box is not None and not _numbers(box, 4):
            raise UsageError("box: [x0, y0, x1, y1]")
        prompts = Prompts(
            points=tuple((float(x), float(y), int(label)) for x, y, label in points),
            box=None if box is None else tuple(map(float, box)),  # type: ignore[arg-type]  # four
        )
        return prompts.checked(image["height"], image["width"])

    def _answers(self, image_id: str, hint: int | None, prompts: Prompts) -> list[MaskAnswer]:
        return self._run.model.answers(image_id, lambda: self._pixels(image_id, hint), prompts)

    def _pixels(self, image_id: str, hint: int | None) -> np.ndarray:
        pixels = self._run.pixels(image_id, hint)
        if isinstance(pixels, Missing):
            raise SourceError(f"{image_id}: its original cannot be shown to the model: {pixels.reason}")
        return pixels

    def _named(self, position: int) -> dict[str, Any]:
        return {"id": self._run.image_id(position), "position": position}


def routes(runs: Sequence[ViewedRun]) -> list[BaseRoute]:
    """The page and its routes, for the first run."""
    corrections = Corrections(runs[0])

    def state(request: Request) -> Any:
        return corrections.state(_asked(request, "who"))

    def following(request: Request) -> Any:
        step = -1 if request.query_params.get("step") == "-1" else 1
        only_left = request.query_params.get("left") == "1"
        return corrections.following(_asked(request, "id"), _position(request), _asked(request, "who"), step, only_left)

    def image(request: Request) -> Any:
        return corrections.image(_asked(request, "id"), _asked(request, "who"), _position(request))

    def answers(given: dict[str, Any]) -> Any:
        return corrections.answers(*_which(given), given)

    def prepare(given: dict[str, Any]) -> Any:
        return corrections.prepare(*_which(given), _text(given, "who"))

    return [
        Route("/correct", page("correct.html")),
        Route("/api/correct", _json(state)),
        Route("/api/correct/next", _json(following)),
        Route("/api/correct/image", _json(image)),
        Route(
            "/api/correct/prepare",
            _posted(prepare),
            methods=["POST"],
        ),
        Route(
            "/api/correct/answers", _posted(lambda given: corrections.answers(*_which(given), given)), methods=["POST"]
        ),
        Route("/api/correct/edit", _posted(lambda given: corrections.edit(*_which(given), given)), methods=["POST"]),
    ]


def _shown(columns: dict[str, list[Any]], name: str, key: Key, edit: Edit | None) -> Any:
    """A value of a mask that stands, for the page."""
    if name == "key":
        return key
    if edit is None:
        return columns[name][key] if name in columns else None  # type: ignore[index]  # the dataset's keys are numbers
    if name == "made_at":
        return edit.edited_at.isoformat(timespec="seconds")
    value = getattr(edit, name, None)
    return round(value, 5) if name in _OF_MODEL and value is not None else value


def _targets(action: str, given: dict[str, Any], stands: Standing, who: str) -> dict[str, Any]:
    """Which mask goes, or which edit is taken back. Raises UsageError where there is none."""
    if action == "undo":
        last = stands.last_of.get(who)
        if last is None:
            raise UsageError("there is nothing of yours to undo on this image")
        return {"of": last.edit_id}
    if action in ("add", "done"):
        return {}
    key = given.get("key")
    if isinstance(key, bool) or not isinstance(key, (int, str)) or key not in stands.masks:
        raise UsageError("that mask is not there any more: somebody else has changed it")
    return {"mask_id": key} if isinstance(key, int) else {"of": key}


def _posted(handler: Callable[[dict[str, Any]], Any]) -> Callable[[Request], Any]:
    """An endpoint for a JSON object."""

    async def endpoint(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MOST_BYTES:
                return JSONResponse({"error": f"a request has at most {_MOST_BYTES:,} bytes"}, 413)
        return await run_in_threadpool(_json(lambda _: handler(_object(bytes(body)))), request)

    return endpoint


def _json(handler: Callable[[Request], Any]) -> Callable[[Request], Response]:
    """What the handler returns, as JSON; errors too."""
    return answered(lambda request: JSONResponse(handler(request)))


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("this is no JSON") from None
    if not isinstance(given, dict):
        raise UsageError("a request is a JSON object")
    return given


def _which(given: dict[str, Any]) -> tuple[str, int | None]:
    """The image that is meant, and where it may be."""
    position = given.get("position")
    hint = position if isinstance(position, int) and not isinstance(position, bool) else None
    image_id = _text(given, "id")
    if not image_id:
        raise UsageError("id is missing: name an image")
    return image_id, hint


def _asked(request: Request, name: str) -> str:
    value = request.query_params.get(name)
    if not value:
        raise UsageError(f"{name} is missing")
    return value


def _position(request: Request) -> int | None:
    text = request.query_params.get("position", "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 12):
        raise UsageError(f"position={text!r}: use a whole number, 0 or more")
    return int(text) if text else None


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name) or ""
    if not isinstance(value, str):
        raise UsageError(f"{name} {value!r}: use text")
    return value


def _numbers(value: Any, count: int) -> bool:
    """Whether it is a list of so many finite numbers."""
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(each, (int, float)) and not isinstance(each, bool) and np.isfinite(each) for each in value)
    )
