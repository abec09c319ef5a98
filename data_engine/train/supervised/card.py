"""What a training leaves beside its weights: what was trained on what, how it went, and how good it is."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_engine.sam.checkpoint_export import ExportedCheckpoint
from data_engine.sam.checkpoint_facts import count_parameters
from data_engine.sam.digests import sha256_of
from data_engine.train.supervised.decoding_step import FIGURES
from data_engine.train.supervised.log_files import STEPS, VALIDATIONS, put_text, read_lines
from data_engine.train.supervised.settings import TrainingSettings
from data_engine.train.supervised.starting_model import Start
from data_engine.train.supervised.training import Progress

WEIGHTS, CARD, README = "model.safetensors", "card.json", "README.md"
_POINTS = 100  # of the curve
_PACKAGES = ("data-engine", "torch", "numpy", "peft")


def write_card(
    folder: Path,
    weights: ExportedCheckpoint,
    start: Start,
    settings: TrainingSettings,
    data: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Writes card.json and README.md. Returns the card."""
    trained = sum(parameter.numel() for parameter in start.model.parameters() if parameter.requires_grad)
    card = {
        "weights": {"file": weights.weights.name, "sha256": weights.sha256, "bytes": weights.size},
        "parameters": {**count_parameters(weights.architecture), "trained": trained},
        "start": {"name": start.name, "sha256": start.sha256},
        "data": data,
        "settings": settings.content(),
        "progress": _progress(progress),
        "curve": _curve(read_lines(folder / STEPS)),
        "evaluation": read_lines(folder / VALIDATIONS),
        "versions": _versions(),
    }
    put_text(folder / CARD, json.dumps(card, indent=1) + "\n")
    put_text(folder / README, _readme(card))
    return card


def is_described(folder: Path, weights: str, progress: Progress) -> bool:
    """Whether the weights and the card of the training that came this far are there already."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        found = {"progress": card["progress"], "sha256": card["weights"]["sha256"]}
        return found == {"progress": _progress(progress), "sha256": sha256_of(folder / weights)}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "steps": progress.step,
        "epochs": progress.position.epoch,
        "images": progress.images,
        "prompted_masks": progress.prompted_masks,
        "images_without_masks_passed_over": progress.passed_over,
        "steps_skipped": progress.skipped,
        "seconds": round(progress.seconds, 1),
    }


def _curve(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over stretches of the run."""
    size = max(1, -(-len(lines) // _POINTS))
    curve = []
    for start in range(0, len(lines), size):
        part = lines[start : start + size]
        means = {name: _mean([line[name] for line in part if line[name] is not None]) for name in FIGURES}
        curve.append({"step": part[-1]["step"], **means, "learning_rate": part[-1]["learning_rate"]})
    return curve


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 5) if values else None


def _readme(card: dict[str, Any]) -> str:
    progress, start = card["progress"], card["start"]
    lines = [
        "# A SAM trained with data-engine",
        "",
        f"`{card['weights']['file']}`: the average weights, float32, in segment-anything's layout "
        f"(sha256 `{card['weights']['sha256']}`).",
        "",
        f"- Start: {start['name']}" + (f" (sha256 `{start['sha256']}`)" if start["sha256"] else ""),
        f"- Trained: {card['parameters']['trained']:,} parameters, {progress['steps']:,} steps, "
        f"{progress['images']:,} images, {progress['prompted_masks']:,} prompted masks, {progress['seconds']:,.0f} s",
        f"- Data: `{json.dumps(card['data'])}`",
        "- Its licence follows from those of the start and of the data.",
        "",
        "```",
        f"data-engine generate photos/ masks/ --model {card['weights']['file']} --config reference",
        f"data-engine models export {card['weights']['file']} mine.pth --layout segment-anything",
        "```",
    ]
    if card["evaluation"]:
        lines += ["", *_table(card["evaluation"])]
    return "\n".join(lines) + "\n"


def first_and_last(validations: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the same masks, as those that are measured may have changed when a run went on."""
    last = validations[-1]
    same = ("images", "masks")
    return next(line for line in validations if all(line[name] == last[name] for name in same)), last


def _table(validations: list[dict[str, Any]]) -> list[str]:
    """The first and the last validation."""
    first, last = first_and_last(validations)
    lines = [
        f"Mean IoU on {last['masks']:,} masks of {last['images']:,} held-out images:",
        "",
        f"| clicks | mask | step {first['step']:,} | step {last['step']:,} |",
        "|---|---|---|---|",
    ]
    for count, scores in last["clicks"].items():
        for name, value in scores.items():
            before = first["clicks"].get(count, {}).get(name)
            shown = "" if before is None else f"{before:.3f}"
            lines.append(f"| {count} | {name.replace('_', ' ')} | {shown} | {value:.3f} |")
    return lines


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
