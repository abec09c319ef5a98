"""Where a training's output goes: a local folder, or a store, by way of a folder on this machine that is mirrored."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from data_engine.errors import CheckpointError, ClusterError, ModelFailure, PlanMismatch, StorageError, UsageError
from data_engine.sam.digests import sha256_of
from data_engine.stop_signals import StopSignals, stop_signals
from data_engine.storage import is_local, join, list_names, redact, scheme_of
from data_engine.train.supervised.card import CARD, WEIGHTS
from data_engine.train.supervised.log_files import STEPS, VALIDATIONS
from data_engine.train.supervised.run import Sources, Unwatched, train
from data_engine.train.supervised.scratch import Scratch, scratch_folder
from data_engine.train.supervised.settings import TrainingSettings
from data_engine.train.supervised.state_file import FILE as STATE
from data_engine.train.supervised.store_lock import LockLost, only_writer_in_store
from data_engine.train.supervised.store_mirror import StoreMirror, fetch
from data_engine.train.supervised.training import Watcher
from data_engine.train.supervised.workers import Alone, Workers

logger = logging.getLogger(__name__)

_NO_STORE = ("http", "https", "hf")  # read-only; keeps every version of a state for good


def train_into(
    settings: TrainingSettings,
    sources: Sources,
    output: str,
    *,
    data_name: str = "data",
    watcher: Watcher | None = None,
    workers: Workers | None = None,
    stop: StopSignals | None = None,
) -> str:
    """As `run.train`, where `output` may also be a URL. Returns the path or URL of the weights.

    With several workers, each on any machine, all of them call this. Raises what `run.train` raises, and StorageError
    where a store cannot be used, or has not taken all of it at the end: what it lacks is then kept on this machine.
    """
    watcher, workers = watcher or Unwatched(), workers or Alone()
    with nullcontext(stop) if stop is not None else stop_signals(logger.warning) as stop:
        begin = partial(train, settings, sources, data_name=data_name, watcher=watcher, workers=workers, stop=stop)
        if is_local(output):
            return str(begin(output))
        check_output(output)
        lock = nullcontext(None) if workers.rank else only_writer_in_store(output)
        with scratch_folder() as scratch, lock as held, _named(output, scratch.folder):
            workers.gather(None)  # from here on the first worker has the lock, and nobody else writes
            _fetch(output, scratch.folder, workers)
            if held is None:
                begin(scratch.folder)
            else:
                with StoreMirror(output, scratch.folder, held) as mirror:
                    begin(scratch.folder, saved=mirror.saved)
                    with stop.gently():
                        _finish(mirror, scratch, output, stop)
    return join(output, WEIGHTS)


def check_output(output: str) -> str:
    """What a training would find there, in words. Makes and writes nothing.

    Raises UsageError for a URL that no training can write to, StorageError for what cannot be listed.
    """
    if scheme_of(output) in _NO_STORE:
        raise UsageError(
            f"--output {redact(output)}: a training writes its state again and again; name a folder, or a store that "
            "takes that, such as s3://bucket/run"
        )
    names = set(list_names(output))
    if {CARD, WEIGHTS} <= names:
        return "a finished training"
    return "a training to go on with" if STATE in names else "no training yet"


def _fetch(output: str, folder: Path, workers: Workers) -> None:
    """What the store has of the training. Raises ClusterError where workers have found different states."""
    names = (STATE,) if workers.rank else (STATE, STEPS, VALIDATIONS, CARD)
    fetch(output, folder, names)
    if (folder / CARD).exists():
        fetch(output, folder, (WEIGHTS,))
    if workers.world == 1:
        return
    state = folder / STATE
    if len(set(workers.gather(sha256_of(state) if state.exists() else None))) > 1:
        raise ClusterError(
            f"{redact(output)}: the state was written anew while the workers read it; run the same command again"
        )


@contextmanager
def _named(output: str, folder: Path) -> Iterator[None]:
    """What is wrong with the training is said of the output; what is wrong with this machine's disk, of the folder."""
    try:
        yield
    except (PlanMismatch, CheckpointError, ModelFailure) as error:
        raise type(error)(str(error).replace(str(folder), redact(output))) from error


def _finish(mirror: StoreMirror, scratch: Scratch, output: str, stop: StopSignals) -> None:
    try:
        mirror.finish(stop)
    except LockLost:
        raise
    except (StorageError, KeyboardInterrupt) as error:
        kept = (
            f"The training is done; what the store lacks is in {scratch.keep()}: copy all of that to {redact(output)}, "
            "or run the same command again, which trains from the last state in the store"
        )
        if isinstance(error, KeyboardInterrupt):
            logger.warning("%s", kept)
            raise
        raise StorageError(f"{error}. {kept}") from error
