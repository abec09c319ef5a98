"""What is known of a checkpoint: of a known model without fetching it, of anything else from its weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from data_engine.sam.checkpoint_export import dtype_of
from data_engine.sam.checkpoint_layouts import Layout
from data_engine.sam.checkpoints import Checkpoint, cached_path, read_checkpoint, registry, resolve
from data_engine.sam.model import Sam, SamArchitecture, Uninitialised


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """A checkpoint described."""

    name: str
    path: Path  # where it is, or would be once fetched
    cached: bool  # it is there
    sha256: str
    size: int  # in bytes
    licence: str | None  # None: not known
    layout: Layout
    dtype: str
    architecture: SamArchitecture
    parameters: dict[str, int]  # by part


def describe(name_or_path: str | Path) -> CheckpointFacts:
    """Facts of a name, file or URL. Only what a URL leads to is fetched for it. Raises CheckpointError."""
    known = registry().get(str(name_or_path))
    if known is not None and known.architecture is not None:
        return _of_released(known, known.architecture)
    stored = read_checkpoint(name_or_path)
    return CheckpointFacts(
        name=stored.name,
        path=stored.path,
        cached=True,
        sha256=stored.sha256,
        size=stored.path.stat().st_size,
        licence=known.licence if known else None,
        layout=stored.layout,
        dtype=dtype_of(stored.state),
        architecture=stored.architecture,
        parameters=count_parameters(stored.architecture),
    )


def _of_released(known: Checkpoint, architecture: SamArchitecture) -> CheckpointFacts:
    """Its checksum vouches for all of this, so the gigabytes need not be read, only hashed if they are there."""
    path = cached_path(known)
    cached = path.exists()
    if cached:
        resolve(known.name)
    return CheckpointFacts(
        name=known.name,
        path=path,
        cached=cached,
        sha256=known.sha256,
        size=known.size,
        licence=known.licence,
        layout="segment-anything",
        dtype="float32",
        architecture=architecture,
        parameters=count_parameters(architecture),
    )


def count_parameters(architecture: SamArchitecture) -> dict[str, int]:
    """By part. The random matrix that encodes positions is drawn once, never trained, and not counted."""
    with torch.device("meta"), Uninitialised():
        model = Sam(architecture)
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[name.partition(".")[0]] += parameter.numel()
    return dict(counts)
