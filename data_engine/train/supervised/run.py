"""From settings and data to a trained checkpoint: everything put together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_engine.errors import StorageError, UsageError
from data_engine.sam.checkpoint_export import write_checkpoint
from data_engine.sam.segmenter import choose_device
from data_engine.signed_urls import mask_urls
from data_engine.stop_signals import StopSignals, stop_signals
from data_engine.storage import is_local, local_path, redact
from data_engine.train.data.labelled import TrainingData, open_training_data
from data_engine.train.supervised.card import WEIGHTS, is_described, write_card
from data_engine.train.supervised.decoding_step import GradientStep
from data_engine.train.supervised.embeddings import InMemory, Kept, OnDisk
from data_engine.train.supervised.encoder import add_drop_path, checkpoint_blocks, trains
from data_engine.train.supervised.log_files import put_text
from data_engine.train.supervised.lora import merged_state
from data_engine.train.supervised.output_lock import only_writer
from data_engine.train.supervised.settings import TrainingSettings
from data_engine.train.supervised.starting_model import Start, starting_model
from data_engine.train.supervised.state_file import FILE as STATE
from data_engine.train.supervised.stream import ExampleStream
from data_engine.train.supervised.training import Progress, Training, Watcher
from data_engine.train.supervised.validation import Validation
from data_engine.train.supervised.views import ViewMaker
from data_engine.train.supervised.workers import Alone, Workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sources:
    """What is trained on, and what is measured on."""

    training: TrainingData
    validation: TrainingData | None = None

    def describe(self) -> dict[str, Any]:
        held_out = self.validation.describe() if self.validation is not None else None
        return {"training": self.training.describe(), "validation": held_out}


def open_sources(spec: str, settings: TrainingSettings) -> Sources:
    """Raises ConfigError, SourceError and DatasetError for data that cannot be used."""
    filters, held_out = settings.data.filters, settings.data.validation
    return Sources(open_training_data(spec, filters), open_training_data(held_out, filters) if held_out else None)


class Unwatched:
    """Nobody looks on."""

    def began(self, step: int, steps: int) -> None:
        pass

    def stepped(self, record: dict[str, Any]) -> None:
        pass

    def validated(self, record: dict[str, Any]) -> None:
        pass


def train(
    settings: TrainingSettings,
    sources: Sources,
    output: str | Path,
    *,
    data_name: str = "data",
    watcher: Watcher | None = None,
    workers: Workers | None = None,
    saved: Callable[[], None] = lambda: None,
    stop: StopSignals | None = None,
) -> Path:
    """Trains, or goes on where a killed run of the same settings was. Returns the path of the weights.

    The folder `output` gets model.safetensors, card.json and README.md at the end, and state.pt, logs and pictures on
    the way. `data_name` stands for the data in the identity of the training. `saved` is called after each state.
    For an output that may be in a store, see `outputs.train_into`.
    SIGINT, SIGTERM and SIGHUP (or whoever else is behind `stop`) end it after the step it is at, with the state of that
    step written: Stopped is raised.
    Raises StorageError where another process trains there, and what the parts raise: all DataEngineErrors that say what
    to do.
    """
    workers = workers or Alone()
    folder = output_folder(output)
    asked = nullcontext(stop) if stop is not None else stop_signals(logger.warning)
    with asked as stop, nullcontext(False) if workers.rank else only_writer(folder) as locked:
        if locked:
            _remove_what_was_cut(folder)
        return _train(settings, sources, folder, data_name, watcher or Unwatched(), workers, saved, stop)


def _train(
    settings: TrainingSettings,
    sources: Sources,
    folder: Path,
    data_name: str,
    watcher: Watcher,
    workers: Workers,
    saved: Callable[[], None],
    stop: StopSignals,
) -> Path:
    device = choose_device(settings.run.device)
    start = _prepared(settings, device)
    gradients = GradientStep(
        start.model, settings, device, _kept(settings, start, folder), _encoder_name(settings, start)
    )
    training = Training(
        start,
        settings,
        _stream(settings, sources, start, workers),
        gradients,
        Validation(sources.validation, settings.run, device, folder) if sources.validation is not None else None,
        folder,
        _identity(settings, start, data_name, workers),
        workers,
        watcher,
        saved,
        stop,
    )
    training.resume()  # another training is refused before anything is written
    if workers.rank == 0:
        _write_settings(folder, settings)
    training.run()
    progress = training.overall()
    if workers.rank == 0 and not is_described(folder, WEIGHTS, progress):
        with stop.gently():
            _export(folder, start, settings, sources, training, progress)
    return folder / WEIGHTS


def _remove_what_was_cut(folder: Path) -> None:
    """Gigabytes that a kill left of a file that was being written; the lock says that nobody writes it now."""
    for name in (STATE, WEIGHTS):
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def _prepared(settings: TrainingSettings, device: torch.device) -> Start:
    start = starting_model(settings)
    start.model.to(device)
    add_drop_path(start.model.image_encoder, settings.train.drop_path)
    if settings.run.gradient_checkpointing:
        checkpoint_blocks(start.model.image_encoder)
    return start


def output_folder(output: str | Path) -> Path:
    """The folder, made if it is not there. Raises UsageError for a URL, StorageError where it cannot be made."""
    if not is_local(str(output)):
        raise UsageError(f"{redact(str(output))}: `train` writes to a local folder; `outputs.train_into` takes URLs")
    folder = local_path(str(output)) if str(output).startswith("file://") else Path(output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}; choose another --output") from None
    return folder


def _stream(settings: TrainingSettings, sources: Sources, start: Start, workers: Workers) -> ExampleStream:
    architecture, seed = start.model.architecture, settings.train.seed
    mask_side = 4 * architecture.grid * settings.loss.upsample
    frame = architecture.image_size
    if frame % mask_side:
        raise UsageError(
            f"loss.upsample={settings.loss.upsample} makes masks of {mask_side} pixels a side, which does not divide "
            f"the input's {frame}: use a smaller one"
        )
    maker = ViewMaker(settings.data, settings.prompts.per_image, seed, frame, mask_side)
    return ExampleStream(
        sources.training,
        maker,
        seed=seed,
        threads=settings.run.loader_threads,
        rank=workers.rank,
        world=workers.world,
    )


def _kept(settings: TrainingSettings, start: Start, folder: Path) -> Kept | None:
    """None where embeddings change from step to step, or are not to be kept."""
    run = settings.run
    if run.embeddings == "none" or trains(start.model.image_encoder):
        return None
    if run.embeddings == "memory":
        return InMemory(run.embeddings_bytes)
    own = folder / "embeddings"
    return OnDisk(Path(run.embeddings_folder).expanduser() if run.embeddings_folder else own, run.embeddings_bytes)


def _encoder_name(settings: TrainingSettings, start: Start) -> str:
    """Names what a frozen encoder computes: its weights, and how precisely."""
    weights = start.sha256 or f"{start.model.architecture} drawn with seed {settings.train.seed}"
    return f"{weights} {settings.train.precision}"


def _identity(settings: TrainingSettings, start: Start, data_name: str, workers: Workers) -> dict[str, Any]:
    """What may not change when a training goes on."""
    data = mask_urls(data_name)  # a link that is signed anew names the same data
    return {"settings": settings.content(), "start": start.sha256, "data": data, "workers": workers.world}


def _write_settings(folder: Path, settings: TrainingSettings) -> None:
    import yaml

    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    put_text(folder / "settings.yaml", mask_urls(text))


def _export(
    folder: Path, start: Start, settings: TrainingSettings, sources: Sources, training: Training, progress: Progress
) -> None:
    with training.average.in_place():
        written = write_checkpoint(
            start.model.architecture,
            merged_state(start.model),
            folder / WEIGHTS,
            "segment-anything",
            "float32",
            overwrite=True,
        )
    write_card(folder, written, start, settings, sources.describe(), progress)
