"""The training loop: steps, validations and states, from the start or from where a killed run was."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from data_engine.errors import ModelFailure
from data_engine.sam.device_errors import is_out_of_memory
from data_engine.stop_signals import Stopped, StopSignals
from data_engine.train.supervised.average import AverageWeights
from data_engine.train.supervised.decoding_step import FIGURES, GradientStep
from data_engine.train.supervised.log_files import LogFiles
from data_engine.train.supervised.optimizer import learning_rate, make_optimizer, trained_parameters
from data_engine.train.supervised.settings import TrainingSettings
from data_engine.train.supervised.starting_model import Start
from data_engine.train.supervised.state_file import read_state, write_state
from data_engine.train.supervised.stream import ExampleStream, Item, Position
from data_engine.train.supervised.validation import Validation
from data_engine.train.supervised.workers import Workers

logger = logging.getLogger(__name__)


class Watcher(Protocol):
    """Whoever looks on."""

    def began(self, step: int, steps: int) -> None: ...

    def stepped(self, record: dict[str, Any]) -> None: ...

    def validated(self, record: dict[str, Any]) -> None: ...


@dataclass(slots=True)
class Progress:
    step: int = 0  # optimiser steps, skipped ones included
    images: int = 0  # of all workers
    prompted_masks: int = 0  # of this worker
    passed_over: int = 0  # images of this worker that had nothing to prompt
    skipped: int = 0  # steps without a finite loss
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    position: Position = field(default_factory=Position)  # of this worker
    to_validate: bool = False  # it was stopped before this step's validation was done


class Training:
    """Trains a model in place. Only the worker of rank 0 writes."""

    def __init__(
        self,
        start: Start,
        settings: TrainingSettings,
        stream: ExampleStream,
        gradients: GradientStep,
        validation: Validation | None,
        output: Path,
        identity: dict[str, Any],
        workers: Workers,
        watcher: Watcher,
        saved: Callable[[], None],
        stop: StopSignals,
    ) -> None:
        """saved: called on the worker of rank 0 after each state, when it and the logs up to it are in the output."""
        self.model = start.model
        self.settings = settings
        self.progress = Progress()
        self._resumed = False
        self._kept = 0  # the step that the state in the output is of; the start needs none
        self.average = AverageWeights(self.model, settings.train.ema_decay)
        self._stream = stream
        self._gradients = gradients
        self._validation = validation
        self._output = output
        self._identity = identity
        self._workers = workers
        self._watcher = watcher
        self._saved = saved
        self._stop = stop
        self._optimizer = make_optimizer(self.model, settings.optimizer)
        self._parameters = [parameter for _, parameter in trained_parameters(self.model)]

    def resume(self) -> None:
        """Goes on from the state in the output, if there is one. Raises PlanMismatch for that of another training."""
        state = read_state(self._output, self._identity)
        if state is None:
            return
        mine = state["workers"][self._workers.rank]
        self.average.put(state["weights"])
        device = self._gradients.device
        self.average.weights = {name: tensor.to(device) for name, tensor in state["average"].items()}
        self._optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**{**mine["progress"], "position": Position(**mine["progress"]["position"])})
        torch.set_rng_state(mine["random"])
        if mine["random_cuda"] and device.type == "cuda":
            torch.cuda.set_rng_state(mine["random_cuda"][0], device)
        images = len(self._stream)
        if state.get("images", images) != images:
            logger.warning(
                "the data had %d images when this training was cut and have %d now: it goes on in another order",
                state["images"],
                images,
            )
        self._resumed, self._kept = True, self.progress.step

    def overall(self) -> Progress:
        """The progress of all workers, each of which has to ask."""
        every = self._workers.gather((self.progress.prompted_masks, self.progress.passed_over))
        prompted, passed_over = (sum(counts) for counts in zip(*every, strict=True))
        return replace(self.progress, prompted_masks=prompted, passed_over=passed_over)

    def run(self) -> None:
        """Trains to the last step.

        Raises ModelFailure for too little memory, or too long without a finite loss; Stopped after a signal, with
        every step in the state; KeyboardInterrupt after a second one.
        """
        steps, every = self.settings.train.steps, self.settings.run.state_every_steps
        logs = self._logs()
        self._watcher.began(self.progress.step, steps)
        try:
            with self._stop.gently(), closing(self._batches()) as batches:
                if not self._resumed or self.progress.to_validate:
                    self._validate(logs)
                self._end_if_asked(logs)
                while self.progress.step < steps:
                    self._advance(batches, logs)
                    if self.progress.to_validate:
                        self._validate(logs)
                    is_due = self.progress.step % every == 0 or self.progress.step == steps
                    if is_due and self.progress.step != self._kept:
                        self._save(logs)
                    self._end_if_asked(logs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ModelFailure(
                f"out of memory after step {self.progress.step}: set run.gradient_checkpointing=true, or begin another "
                "--output with a lower train.images_per_batch (and more train.accumulate), prompts.per_image or "
                "loss.upsample"
            ) from None
        finally:
            if logs is not None:
                logs.close()

    def _advance(self, batches: Iterator[list[Item]], logs: LogFiles | None) -> None:
        """One step; none where it was asked to end while it waited for data, which can take minutes."""
        progress = self.progress
        try:
            with self._stop.at_once():
                items = next(batches)
        except KeyboardInterrupt:
            if not self._stop.asked():
                raise
            return
        epoch = progress.position.epoch
        self._record(logs, self._step(items))
        progress.to_validate = self._is_due(epoch) or progress.step == self.settings.train.steps

    def _end_if_asked(self, logs: LogFiles | None) -> None:
        """Raises Stopped, on all workers after the same step, if one of them was asked to end."""
        if not self._workers.any(self._stop.asked()):
            return
        if self.progress.step != self._kept:
            self._save(logs)
        raise Stopped

    def _batches(self) -> Generator[list[Item], None, None]:
        train = self.settings.train
        with closing(self._stream.items(self.progress.position)) as items:
            while True:
                yield list(islice(items, train.images_per_batch * train.accumulate))

    def _step(self, items: list[Item]) -> dict[str, Any]:
        """One optimiser step."""
        started = time.monotonic()
        progress, settings = self.progress, self.settings
        self._optimizer.zero_grad(set_to_none=True)
        figures = self._workers.mean(self._gradients.run([item.example for item in items]))
        self._workers.average_gradients(self._parameters)
        norm = float(nn.utils.clip_grad_norm_(self._parameters, settings.optimizer.gradient_clip or math.inf))
        rate = learning_rate(settings.optimizer, progress.step, settings.train.steps)
        finite = math.isfinite(norm) and bool(torch.isfinite(figures).all())
        if finite:
            for group in self._optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            self._optimizer.step()
            self.average.update(progress.step)
        self._count(items, finite)
        progress.seconds += time.monotonic() - started
        if progress.skipped_in_a_row >= settings.train.give_up_after:
            raise ModelFailure(
                f"the loss was not finite for {progress.skipped_in_a_row} steps in a row, up to step {progress.step}: "
                "lower optimizer.learning_rate, or try train.precision=float32; "
                f"the last state, if any was written, is from before: {self._output}"
            )
        return {
            "step": progress.step,
            "epoch": progress.position.epoch,
            "images": progress.images,
            **{name: _finite(float(value)) for name, value in zip(FIGURES, figures, strict=True)},
            "learning_rate": rate,
            "gradient_norm": _finite(norm),
            "skipped": progress.skipped,
            "seconds": round(progress.seconds, 3),
        }

    def _count(self, items: list[Item], finite: bool) -> None:
        progress = self.progress
        progress.step += 1
        progress.images += len(items) * self._workers.world
        progress.prompted_masks += sum(len(item.example.targets) for item in items)
        progress.passed_over += sum(item.passed_over for item in items)
        progress.skipped += not finite
        progress.skipped_in_a_row = 0 if finite else progress.skipped_in_a_row + 1
        progress.position = items[-1].position

    def _record(self, logs: LogFiles | None, record: dict[str, Any]) -> None:
        if logs is not None:
            logs.step(record)
        self._watcher.stepped(record)

    def _is_due(self, epoch: int) -> bool:
        every = self.settings.run.validate_every_steps
        return self.progress.position.epoch > epoch if every is None else self.progress.step % every == 0

    def _validate(self, logs: LogFiles | None) -> None:
        """Can take longer than whoever stops a machine waits: it is broken off, and made up for when this goes on."""
        self.progress.to_validate = False
        if self._validation is None or logs is None:
            return
        with self.average.in_place():  # never left half-way: the next state has what is in the model
            try:
                with self._stop.at_once():
                    record, pictures = self._validation.measure(self.model, self.progress.step, self._stop.asked)
            except KeyboardInterrupt:
                if not self._stop.asked():
                    raise
                self.progress.to_validate = True
                return
        logs.validation(record, pictures)
        self._watcher.validated(record)

    def _logs(self) -> LogFiles | None:
        if self._workers.rank:
            return None
        step = self.progress.step if self._resumed else -1
        validated = step - 1 if self.progress.to_validate else step
        return LogFiles(self._output, step, validated, tensorboard=self.settings.run.tensorboard)

    def _save(self, logs: LogFiles | None) -> None:
        device = self._gradients.device
        cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        mine = {"progress": asdict(self.progress), "random": torch.get_rng_state(), "random_cuda": cuda}
        every = self._workers.gather(mine)
        self._kept = self.progress.step
        if logs is None:
            return
        state = {
            "weights": {name: parameter.detach() for name, parameter in trained_parameters(self.model)},
            "average": self.average.weights,
            "optimizer": self._optimizer.state_dict(),
            "workers": every,
            "images": len(self._stream),
        }
        write_state(self._output, self._identity, state)
        logs.flush()
        self._saved()


def _finite(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None
