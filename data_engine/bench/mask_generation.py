"""The benchmark: all contenders on the same photographs, weights and settings, in turn, in one process.

A B A B ..., so that a machine that slows down or speeds up does so for all. The first round only warms up. Stages are
timed in a round of their own, because waiting for a GPU at every stage makes the whole slower.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from data_engine.bench.clock import synchronise
from data_engine.bench.contender import OUTSIDE, STAGES, Contender
from data_engine.bench.floors import Amounts, floors, number_formats, shares
from data_engine.bench.machine import attainable, machine_facts
from data_engine.bench.memory import with_peak_memory
from data_engine.bench.models import BenchModel, load_model
from data_engine.bench.ours import Ours
from data_engine.bench.parity import InOrder, Margins, Matched, in_order, matched
from data_engine.bench.photographs import Photograph
from data_engine.bench.reference import Reference, reference_sam
from data_engine.bench.transformers_pipeline import TransformersPipeline
from data_engine.errors import DataEngineError, UsageError
from data_engine.masks.grid import crop_windows
from data_engine.masks.image_masks import ImageMasks
from data_engine.masks.settings import MaskSettings
from data_engine.sam.compiled import compile_networks
from data_engine.sam.model import SamArchitecture
from data_engine.sam.segmenter import Precision, SamSegmenter, choose_device

log = logging.getLogger(__name__)

AGAINST = ("segment-anything", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure."""

    model: str = "starter"
    device: str = "auto"
    precision: Precision = "reference"
    compiled: bool = False
    masks: MaskSettings = field(default_factory=MaskSettings)
    repeats: int = 3
    """Rounds that count."""
    seconds: float | None = None
    """Begin no further round after so many seconds, but measure one."""
    against: tuple[str, ...] | None = None
    """Of `AGAINST`; None: segment-anything, if it is installed."""
    seed: int = 0
    """Of random weights."""

    def __post_init__(self) -> None:
        if self.precision not in ("reference", "fast"):
            raise UsageError(f"unknown precision {self.precision!r}: use 'reference' or 'fast'")
        if self.repeats < 1:
            raise UsageError(f"{self.repeats} repeats: use 1 or more")
        for name in self.against or ():
            if name not in AGAINST:
                raise UsageError(f"unknown contender {name!r}: use {', '.join(AGAINST)}, or none")


@dataclass(slots=True)
class Measured:
    """What the rounds showed of one contender."""

    rounds: list[float] = field(default_factory=list)  # seconds an image
    peak: int | None = None  # bytes
    generated: list[Any] = field(default_factory=list)  # of the last round, a photograph each

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def measure(
    photographs: Sequence[Photograph], options: BenchOptions, note: Callable[[str], None] = log.info
) -> dict[str, Any]:
    """Everything that was measured, as JSON has it. What cannot take part is listed with the reason.

    note: told what has been done, as large models take minutes an image.

    Raises UsageError for an unknown contender or device, and when segment-anything is asked for and not installed.
    """
    device = choose_device(options.device)
    model = load_model(options.model, device, options.seed)
    architecture = model.sam.architecture
    contenders, absent = _contenders(model, options, device)
    measured = _rounds(contenders, photographs, options, device, absent, note)
    contenders = [contender for contender in contenders if contender.name in measured]
    stages = {}
    for contender in contenders:
        stages[contender.name] = _stages(contender, photographs)
        note(f"stages, {contender.name}: {stages[contender.name].get('total', 0.0):.1f} s an image")
    ours = contenders[0].name
    return {
        "benchmark": "automatic mask generation",
        "model": {"name": model.name, "weights": model.weights, **asdict(architecture)},
        "images": [{"id": photo.image_id, "size": list(photo.pixels.shape[:2])} for photo in photographs],
        "settings": asdict(options.masks),
        "options": {
            name: getattr(options, name) for name in ("precision", "compiled", "repeats", "seconds", "against", "seed")
        },
        "device": str(device),
        "machine": machine_facts(device),
        "torchvision_used": next((each.torchvision for each in contenders if isinstance(each, Reference)), None),
        "contenders": {
            name: {
                "seconds_an_image": result.median,
                "rounds": result.rounds,
                "stages": stages[name],
                "peak_memory": result.peak,
                "masks": [len(found) for found in _records(contenders, name, result)],
            }
            for name, result in measured.items()
        },
        "times_faster": {name: _ratios(measured[ours], other) for name, other in measured.items() if name != ours},
        "absent": absent,
        "candidates": [found.filtered.as_dict() for found in measured[ours].generated],
        "parity": _parity(contenders, measured, options, device),
        "floor": _floor(architecture, measured[ours], stages[ours], options, device),
    }


def _contenders(
    model: BenchModel, options: BenchOptions, device: torch.device
) -> tuple[list[Contender], dict[str, str]]:
    """Ours first. The others share the memory of the weights, so they are made before ours changes their precision."""
    state = dict(model.sam.state_dict())
    architecture = model.sam.architecture
    exact = options.precision == "reference"
    others: list[Contender] = []
    absent: dict[str, str] = {}
    for name in AGAINST[:1] if options.against is None else options.against:
        try:
            if name == "segment-anything":
                others.append(Reference(reference_sam(architecture, state), options.masks, exact=exact))
            else:
                others.append(TransformersPipeline(architecture, state, options.masks, exact=exact))
        except Exception as error:  # it is not there, cannot do this, or its interface has changed
            if name == "segment-anything" and options.against is not None:
                raise
            absent[name] = _reason(error)
    if options.compiled:
        compile_networks(model.sam)
    return [Ours(SamSegmenter(model.sam, device, options.precision), options.masks), *others], absent


def _rounds(
    contenders: list[Contender],
    photographs: Sequence[Photograph],
    options: BenchOptions,
    device: torch.device,
    absent: dict[str, str],
    note: Callable[[str], None],
) -> dict[str, Measured]:
    """Runs all of them. One that fails, ours excepted, is moved to the absent."""
    measured = {contender.name: Measured() for contender in contenders}
    begun = time.monotonic()
    for number in range(options.repeats + 1):
        if number > 1 and options.seconds is not None and time.monotonic() - begun > options.seconds:
            break
        totals = dict.fromkeys(measured, 0.0)
        for result in measured.values():
            result.generated = []
        for photograph in photographs:
            for contender in [contender for contender in contenders if contender.name in measured]:
                try:
                    seconds = _run(contender, photograph, device, measured[contender.name])
                except Exception as error:
                    if isinstance(contender, Ours):
                        raise
                    absent[contender.name] = _reason(error)
                    del measured[contender.name]
                    continue
                totals[contender.name] += seconds
                round_ = f"round {number} of {options.repeats}" if number else "warm-up"
                note(f"{round_}, {photograph.image_id}, {contender.name}: {seconds:.1f} s")
        if number:
            for name, result in measured.items():
                result.rounds.append(totals[name] / len(photographs))
    return measured


def _run(contender: Contender, photograph: Photograph, device: torch.device, into: Measured) -> float:
    """Seconds from pixels to run lengths."""

    def timed() -> tuple[Any, float]:
        synchronise(device)
        begun = time.perf_counter()
        generated = contender.generate(photograph.pixels)
        synchronise(device)
        return generated, time.perf_counter() - begun

    (generated, seconds), peak = with_peak_memory(device, timed)
    into.generated.append(generated)
    if peak is not None:
        into.peak = max(into.peak or 0, peak)
    return seconds


def _stages(contender: Contender, photographs: Sequence[Photograph]) -> dict[str, float]:
    """Seconds an image, in the order of `STAGES`; "total" is what `generate` does, timed with its stages."""
    seconds: dict[str, float] = {}
    for photograph in photographs:
        for stage, value in contender.stages(photograph).items():
            seconds[stage] = seconds.get(stage, 0.0) + value / len(photographs)
    if not seconds:
        return {}
    order = [stage for stage in STAGES if stage in seconds] + [stage for stage in seconds if stage not in STAGES]
    total = sum(value for stage, value in seconds.items() if stage not in OUTSIDE)
    return {**{stage: seconds[stage] for stage in order}, "total": total}


def _ratios(ours: Measured, other: Measured) -> dict[str, Any]:
    """How many times faster we are, round by round."""
    rounds = [theirs / mine for mine, theirs in zip(ours.rounds, other.rounds, strict=True)]
    return {"median": statistics.median(rounds), "rounds": rounds}


def _records(contenders: list[Contender], name: str, result: Measured) -> list[Any]:
    contender = next(contender for contender in contenders if contender.name == name)
    return [contender.records(generated) for generated in result.generated]


def _parity(
    contenders: list[Contender], measured: dict[str, Measured], options: BenchOptions, device: torch.device
) -> dict[str, Any]:
    """By other contender. Record by record where the arithmetic is the same, which is on a CPU in float32."""
    ours = _records(contenders, contenders[0].name, measured[contenders[0].name])
    same_arithmetic = device.type == "cpu" and options.precision == "reference" and not options.compiled
    found = {}
    for contender in contenders[1:]:
        theirs = _records(contenders, contender.name, measured[contender.name])
        orderly, loose = InOrder(), Matched()
        exact = same_arithmetic and isinstance(contender, Reference)
        for mine, yours in zip(ours, theirs, strict=True):
            if exact:
                in_order(mine, yours, orderly)
            matched(mine, yours, options.masks, Margins.of(options.precision), loose)
        found[contender.name] = {"in_order": orderly.as_dict() if exact else None, "matched": loose.as_dict()}
    return found


def _floor(
    a: SamArchitecture, ours: Measured, stages: dict[str, float], options: BenchOptions, device: torch.device
) -> dict[str, Any]:
    formats = number_formats(options.precision, device.type)
    wanted = ("float32", "tf32", "bfloat16") if device.type == "cuda" else tuple(dict.fromkeys([*formats, "float32"]))
    best = attainable(device, wanted)
    found = floors(a, _amounts(a, ours.generated, options.masks), formats, best)
    return {
        "attainable": {"operations": best.operations, "bandwidth": best.bandwidth},
        "stages": {stage: floor.as_dict() for stage, floor in found.items()},
        "seconds_an_image": sum(floor.seconds for floor in found.values()),
        "share_reached": shares(found, stages, ours.median),
    }


def _amounts(a: SamArchitecture, generated: list[ImageMasks], settings: MaskSettings) -> Amounts:
    """Of an image, on average. The boxes of the masks that stayed stand for those of all that were drawn."""
    views = [
        len(crop_windows(found.height, found.width, settings.crop_n_layers, settings.crop_overlap_ratio))
        for found in generated
    ]
    boxes = [found.boxes for found in generated if len(found)]
    sides = [1 + each[:, 2:] - each[:, :2] for each in boxes]
    areas = [float(each.prod(1).mean()) for each in sides]
    candidates = [found.filtered.candidates for found in generated]
    drawn = [found.filtered.candidates - found.filtered.rejected_iou for found in generated]
    return Amounts(
        views=statistics.mean(views),
        prompts=statistics.mean(candidates) / (a.num_masks - 1),
        drawn=statistics.mean(drawn),
        region=statistics.mean(areas) if areas else 0.0,
    )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, DataEngineError) else f"{type(error).__name__}: {text}"
