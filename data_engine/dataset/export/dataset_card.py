"""The README.md of a dataset on the Hugging Face Hub, from what ran and what came out."""

from __future__ import annotations

import json
from typing import Any

from data_engine.dataset.export.format import Finished

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SIZES_ABOVE = ((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))
_LARGEST = "100M<n<1B"

_CARD = """\
---
# license: FILL IN, e.g. cc-by-4.0. It depends on the photographs and on the checkpoint.
pretty_name: {title}
task_categories:
- image-segmentation
- mask-generation
size_categories:
- {size}
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

# {title}

> **FILL IN before publishing: the licence** of the photographs and of these masks, where the photographs come from, and
> what they must not be used for. Nobody has looked at every mask: they are a model's output, not ground truth.

{images:,} images with {masks:,} masks, generated automatically by
{model} with data-engine.

| | |
|---|---|
| images | {images:,} |
| masks | {masks:,} ({per_image:.1f} an image) |
| categories | {categories} |
| model | {model} |
| sha256 of its weights | `{sha256}` |
| points a side | {points} |
| predicted IoU at least | {iou} |
| stability score at least | {stability} |
| left out | {left_out} |
| fingerprint of the job | `{fingerprint}` |

## Columns
| column | type | |
|---|---|---|
| image_id | string | unique |
| image | image | the encoded original; `datasets` shows it as it was masked |
| uri | string | where the original came from; null for a local file |
| width, height | int32 | as displayed |
| masks | list of | |
| mask_id | int32 | 0, 1, ... within the image; gaps where masks were filtered out |
| category | class label | |
| bbox | 4 int32 | x, y, width, height in pixels; the width counts pixels |
| area | int32 | pixels |
| predicted_iou, stability_score | float32 | the model's own estimates of quality |
| point | 2 float32 | x and y of the click that made the mask |
| label, label_score | string, float32 | null unless the run was labelled |
| counts | string | COCO run lengths, compressed |

## Loading
```python
from datasets import load_dataset
from pycocotools import mask as coco

dataset = load_dataset("parquet", data_files="data/train-*.parquet", split="train")  # or load_dataset("<user>/<name>")
row = dataset[0]
size = [row["height"], row["width"]]
masks = [coco.decode({{"size": size, "counts": mask["counts"]}}) for mask in row["masks"]]  # HxW uint8 each
```

## Settings
The job's settings, as data-engine recorded them:

```json
{settings}
```
"""


def dataset_card(export: Finished) -> str:
    """Markdown with the front matter that the Hub reads."""
    plan, total = export.plan, export.total
    settings = plan.get("config", {}).get("masks", {})
    filters = {name: export.parameters[name] for name in ("min_iou", "min_stability", "min_area")}
    given = {name: value for name, value in filters.items() if value is not None}
    return _CARD.format(
        title="Automatic masks",
        size=next((name for bound, name in (*_SIZES, *_SIZES_ABOVE) if total.images < bound), _LARGEST),
        images=total.images,
        masks=total.masks,
        per_image=total.masks / max(total.images, 1),
        categories=", ".join(export.categories[:20]) + (", ..." if len(export.categories) > 20 else ""),
        model=plan.get("model", {}).get("name", "a model"),
        sha256=plan.get("model", {}).get("sha256", "unknown"),
        points=settings.get("points_per_side", "unknown"),
        iou=_least(settings.get("pred_iou_thresh"), filters["min_iou"]),
        stability=_least(settings.get("stability_score_thresh"), filters["min_stability"]),
        left_out=_left_out(export),
        fingerprint=plan.get("fingerprint", "unknown"),
        settings=json.dumps(
            {"masks": settings, "export": {**given, "deduplicated": export.parameters["deduplicated"]}}, indent=1
        ),
    )


def _least(*thresholds: Any) -> str:
    given = [value for value in thresholds if value is not None]
    return f"{max(given):g}" if given else "unknown"


def _left_out(export: Finished) -> str:
    total = export.total
    parts = [
        f"{count:,} images {why}"
        for count, why in (
            (total.failed, "that could not be masked"),
            (total.without_masks, "without masks"),
            (total.filtered_out, "of whose masks none passed the filters"),
            (total.missing, "whose files were gone"),
        )
        if count
    ]
    return "; ".join(parts) or "nothing"
