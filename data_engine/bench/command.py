"""What `data-engine bench INPUT` does: measures, prints one table, writes JSON."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from data_engine.bench.mask_generation import BenchOptions, measure
from data_engine.bench.photographs import read_photographs
from data_engine.bench.table import print_result
from data_engine.errors import UsageError
from data_engine.masks.settings import MaskSettings
from data_engine.storage import redact

MASK_OPTIONS = (
    "points_per_side",
    "crop_n_layers",
    "crop_n_points_downscale_factor",
    "min_mask_region_area",
    "pred_iou_thresh",
    "stability_score_thresh",
    "stability_score_offset",
)


def run(
    input_uri: str,
    options: BenchOptions,
    *,
    limit: int = 1,
    output: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measures mask generation on the first `limit` images of an input. Returns what it writes to `output`, a file.

    Raises UsageError for what cannot be measured as asked, SourceError for an input without images.
    """
    if limit < 1:
        raise UsageError(f"{limit} images: use 1 or more")
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    progress = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    measured = measure(read_photographs(input_uri, limit), options, lambda line: progress.print(redact(line)))
    result = {**measured, "date": date, "command": command_line(input_uri, limit, options)}
    if output is not None:
        path = Path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    print_result(result, console or Console(highlight=False, markup=False, emoji=False))
    return result


def mask_settings(**settings: Any) -> MaskSettings:
    """Raises UsageError for a value that is not possible."""
    try:
        return MaskSettings(**settings)
    except ValueError as error:
        raise UsageError(str(error)) from None


def contenders(against: str | None) -> tuple[str, ...] | None:
    """What `--against` says -> names: "segment-anything,transformers" are two, "none" is none, nothing is nothing."""
    if against is None:
        return None
    names = tuple(name.strip() for name in against.split(",") if name.strip())
    return () if names == ("none",) else names


def command_line(input_uri: str, limit: int, options: BenchOptions) -> str:
    """The command that repeats this, with everything that is not the default."""
    against = None if options.against is None else ",".join(options.against) or "none"
    masks, usual_masks = asdict(options.masks), asdict(MaskSettings())
    given = {name: getattr(options, name) for name in ("device", "precision", "repeats", "seconds", "seed")}
    usual = {name: getattr(BenchOptions(), name) for name in given}
    given |= {"against": against, "limit": limit, **{name: masks[name] for name in MASK_OPTIONS}}
    usual |= {"against": None, "limit": 1, **{name: usual_masks[name] for name in MASK_OPTIONS}}
    words = ["data-engine", "bench", input_uri, "--model", options.model]
    for name, value in given.items():
        if value != usual[name]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if options.compiled:
        words.append("--compiled")
    return shlex.join(words)
