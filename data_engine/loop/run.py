"""The loop itself: round after round, step after step. A step whose output is there is not done again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from data_engine import __version__
from data_engine.dataset.reader import MaskDataset
from data_engine.dataset.schema import SCHEMA_VERSION
from data_engine.errors import ConfigError, DatasetError, SourceError
from data_engine.loop.folder import CARD, EVALUATION, LoopFolder, read_json, write_json, write_text
from data_engine.loop.measure import evaluate, held_out, measurement, refuse_measured
from data_engine.loop.selection import people_spec, select, training_spec
from data_engine.loop.settings import LoopSettings
from data_engine.loop.table import Row, as_markdown, change, scores
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import input_name
from data_engine.pipeline.progress import Progress
from data_engine.sam.checkpoints import identify
from data_engine.stop_signals import Stopped, stop_signals
from data_engine.storage import join
from data_engine.train.supervised.store_lock import only_writer_anywhere

logger = logging.getLogger(__name__)


class LoopWatcher(Protocol):
    """Whoever looks on."""

    def began(self, number: int, step: str) -> None: ...

    def advanced(self, done: int, total: int) -> None: ...

    def generation(self) -> Progress:
        """Who looks on while masks are made."""
        ...


class Unwatched:
    """Nobody looks on."""

    def began(self, number: int, step: str) -> None:
        pass

    def advanced(self, done: int, total: int) -> None:
        pass

    def generation(self) -> Progress:
        return Progress.silent()


@dataclass(slots=True)
class LoopReport:
    """What there is so far."""

    settings: dict[str, Any]  # what decides the results
    rows: list[Row] = field(default_factory=list)  # the start, then every finished round
    interrupted: bool = False
    waiting: str | None = None
    """What people have to do before the loop can go on."""

    @property
    def exit_code(self) -> int:
        """0 all rounds are done, 130 stopped, 4 waiting for the masks of people."""
        return 130 if self.interrupted else 4 if self.waiting else 0

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "change": change(self.rows),
            "waiting": self.waiting,
            "settings": self.settings,
            "code_version": __version__,
        }


class _Interrupted(Exception):
    pass


class _Waiting(Exception):
    pass


def run_loop(input_uri: str, output: str, settings: LoopSettings, watcher: LoopWatcher | None = None) -> LoopReport:
    """Goes through the rounds that are not done yet; the table in OUTPUT is written anew after each.

    SIGINT, SIGTERM and SIGHUP end it as the step that it is at says, and others at once.
    Raises PlanMismatch when `output` holds another loop, StorageError when another process is at work in it, and what
    the steps raise.
    """
    loop = _Loop(input_uri, output, settings, watcher or Unwatched())
    loop.refuse_what_would_fail_later()
    loop.folder.make()
    with stop_signals(logger.warning), only_writer_anywhere(loop.folder.root):
        loop.settle()
        try:
            for number in range(1, settings.rounds + 1):
                loop.round(number)
        except (_Interrupted, Stopped):
            loop.report.interrupted = True
        except _Waiting as reason:
            loop.report.waiting = str(reason)
        loop.write()
    return loop.report


class _Loop:
    def __init__(self, input_uri: str, output: str, settings: LoopSettings, watcher: LoopWatcher) -> None:
        self.input = input_uri
        self.settings = settings
        self.folder = LoopFolder(output, settings.datasets)
        self.watcher = watcher
        self.report = LoopReport(settings.content())
        self._number = 0

    def refuse_what_would_fail_later(self) -> None:
        """Raises what the measurement and the training would raise after hours of work."""
        from data_engine.train.data.labelled import open_training_data

        measurement(self.settings)
        held_out(self.settings)
        if self.settings.mix is not None and self.folder.weights(1) is None:
            open_training_data(self.settings.mix, self.settings.filters)

    def settle(self) -> None:
        identity = {
            "schema_version": SCHEMA_VERSION,
            "input": input_name(self.input),
            "model_sha256": identify(self.settings.model),
            "settings": self.report.settings,
        }
        self.folder.settle(identity)

    def round(self, number: int) -> None:
        self._number = number
        before = self._model(number - 1)
        masks = self._generate(before)
        names = MaskDataset(masks).images(columns=["image_id"])["image_id"].to_pylist()
        if number == 1:
            self._start_row(names)
        kept = self._select(masks)
        steps = self._train(masks, names)
        model = self._model(number)
        found = self._evaluation(number, model, names)
        self._row(found, stage=self.settings.stage(number), steps=steps, model_sha256=identify(model), **kept)

    def write(self) -> None:
        """The table, unless the one that stands has more rounds: those asked for before, or not yet found again."""
        stands = read_json(self.folder.of_round(0, "rounds.json"))
        if stands is not None and len(stands["rows"]) > len(self.report.rows):
            return
        write_json(self.folder.of_round(0, "rounds.json"), self.report.as_json())
        write_text(self.folder.of_round(0, "rounds.md"), as_markdown(self.report.rows))

    # ---- the steps --------------------------------------------------------------------------------------------------

    def _generate(self, model: str) -> str:
        """The round's dataset, complete."""
        masks = self.folder.masks(self._number)
        with self._step("masks") as step:
            report = generate(self.input, masks, self.settings.job(model), progress=self.watcher.generation())
            step.found_done = not report.new.images
        if report.interrupted:
            raise _Interrupted
        if not report.complete:
            raise SourceError(
                f"{masks}: {len(report.failed_shards)} shards of {self.input} could not be read; "
                "the same command tries them again"
            )
        return masks

    def _start_row(self, names: list[str]) -> None:
        """Measures the model that the loop starts from."""
        number, self._number = self._number, 0
        found = self._evaluation(0, self.settings.model, names)
        self._row(found, model_sha256=identify(self.settings.model))
        self._number = number

    def _select(self, masks: str) -> dict[str, int]:
        settings = self.settings
        if settings.deduplicate:
            with self._step("duplicates") as step:
                step.found_done = not _deduplicate(masks)
        kept = asdict(select(masks, settings.filters, deduplicated=settings.deduplicate))
        if settings.stage(self._number) == "assisted":  # they are proposals: nothing is trained on them
            return {name: kept[name] for name in ("images", "masks")}
        if not kept["masks_kept"]:
            raise DatasetError(
                f"round {self._number}: none of its {kept['masks']:,} masks passes the filters; "
                "loosen them (--set filters.min_predicted_iou=…) in another OUTPUT, and look at the dataset: "
                f"`data-engine view {masks}`"
            )
        return kept

    def _train(self, masks: str, names: list[str]) -> int:
        """Trains from the round's start, or goes on with it; the steps that it took."""
        number, settings = self._number, self.settings
        output = self.folder.training(number)
        if self.folder.weights(number) is None:
            from data_engine.train.supervised.outputs import train_into
            from data_engine.train.supervised.ray_workers import train_on_ray
            from data_engine.train.supervised.run import open_sources

            trainer = settings.trainer(self._training_start(number))
            self._await_people(number)
            spec = training_spec(settings, number, masks)
            sources = open_sources(spec, trainer)
            refuse_measured(held_out(settings, names), sources.training.image_ids())
            with self._step("training"):
                if settings.training_workers > 1:
                    train_on_ray(trainer, spec, output, settings.training_workers)
                else:
                    train_into(trainer, sources, output, data_name=spec, watcher=_Steps(self.watcher.advanced))
        card = read_json(join(output, CARD)) or {}
        return int(card.get("progress", {}).get("steps", 0))

    def _await_people(self, number: int) -> None:
        """Raises _Waiting while the masks of people for this round cannot be read."""
        from data_engine.train.data.labelled import open_training_data

        if self.settings.stage(number) == "automatic":
            return
        spec = people_spec(self.settings, number)
        try:
            open_training_data(spec, self.settings.filters)
        except (ConfigError, SourceError, DatasetError) as error:
            raise _Waiting(
                f"round {number} waits for masks of people at {spec} ({error}). "
                f"Correct its proposals here: data-engine view {self.folder.masks(number)} (the page /correct), then "
                f"data-engine apply-corrections; or in another tool: data-engine export {self.folder.masks(number)} "
                f"proposals-{number} --format coco"
            ) from None

    def _evaluation(self, number: int, model: str, trained_on: list[str]) -> dict[str, Any]:
        path = self.folder.of_round(number, EVALUATION)
        found = read_json(path)
        if found is None:
            truth = held_out(self.settings, trained_on)
            with self._step("evaluation"):
                found = evaluate(self.settings, model, truth, self.watcher.advanced)
            write_json(path, found)
        return found

    # ---- models and rows --------------------------------------------------------------------------------------------

    def _model(self, number: int) -> str:
        """The model after a round; before the first, the one that the loop starts from."""
        weights = self.folder.weights(number) if number else None
        return weights if weights is not None else self.settings.model

    def _training_start(self, number: int) -> str:
        return self._model(number - 1) if self.settings.start_from == "previous" else self.settings.model

    def _row(self, evaluation: dict[str, Any], **facts: Any) -> None:
        seconds = read_json(self._seconds_file()) or {}
        self.report.rows.append({"round": self._number, **facts, "scores": scores(evaluation), "seconds": seconds})
        self.write()

    @contextmanager
    def _step(self, name: str) -> Iterator[_Step]:
        """Its seconds are those of all runs that did a part of it that stays."""
        self.watcher.began(self._number, name)
        step, begun = _Step(), time.monotonic()
        try:
            yield step
        except Stopped:
            self._spend(name, time.monotonic() - begun)
            raise
        self._spend(name, 0.0 if step.found_done else time.monotonic() - begun)

    def _spend(self, name: str, seconds: float) -> None:
        before = read_json(self._seconds_file()) or {}
        write_json(self._seconds_file(), {**before, name: round(before.get(name, 0.0) + seconds, 1)})

    def _seconds_file(self) -> str:
        return self.folder.of_round(self._number, "seconds.json")


@dataclass(slots=True)
class _Step:
    found_done: bool = False  # it was, by an earlier run


class _Steps:
    """A training's watcher that knows of steps alone."""

    def __init__(self, advanced: Callable[[int, int], None]) -> None:
        self._advanced = advanced
        self._total = 0

    def began(self, step: int, steps: int) -> None:
        self._total = steps
        self._advanced(step, steps)

    def stepped(self, record: dict[str, Any]) -> None:
        self._advanced(int(record["step"]), self._total)

    def validated(self, record: dict[str, Any]) -> None:
        pass


def _deduplicate(masks: str) -> bool:
    """Makes a version of duplicates (True) unless the newest one is of the dataset as it is."""
    from data_engine.dedup.run import deduplicate

    try:
        MaskDataset(masks, deduplicated=True)
    except DatasetError:
        deduplicate(masks)
        return True
    return False
