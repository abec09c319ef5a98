"""What a destination says of its export: `_export.json` of the whole, `_export/<piece>.json` of what is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from data_engine.dataset.commits import PLAN_FILE
from data_engine.dataset.duplicates import DatasetState
from data_engine.dataset.export.destination import put_bytes
from data_engine.dataset.export.format import STATE_FOLDER
from data_engine.dataset.export.report import ExportReport
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import StorageError, UsageError
from data_engine.storage import join, list_names, read_bytes, redact

STATE_FILE = "_export.json"
_READERS = 16


def settle_state(
    destination: str,
    dataset: MaskDataset,
    parameters: dict[str, Any],
    pieces: int,
    categories: Callable[[], tuple[str, ...]],
) -> tuple[str, ...]:
    """Writes what is exported how, or raises UsageError when the destination holds another export.

    Returns the categories. They are looked for the first time alone: that is a pass over all files of masks.
    """
    state = DatasetState.of(str(dataset.plan.get("fingerprint")), dataset.complete, dataset.commits)
    wanted = {
        "dataset": {
            "fingerprint": state.fingerprint,
            "images": state.images,
            "commits": state.commits_sha256,
        },
        "parameters": json.loads(json.dumps(parameters)),  # as they come back: lists for tuples
        "pieces": pieces,
    }
    where = join(destination, STATE_FILE)
    if PLAN_FILE.rsplit("/", 1)[-1] in list_names(join(destination, PLAN_FILE.rsplit("/", 1)[0])):
        raise UsageError(f"{redact(destination)} is a dataset itself: export into another DEST")
    try:
        found = json.loads(read_bytes(where))
    except (FileNotFoundError, NotADirectoryError):
        return _settled(where, wanted, categories())
    except StorageError as error:
        if isinstance(error.__cause__, NotADirectoryError):
            raise StorageError(f"{redact(destination)} is a file; choose another destination") from error
        raise
    except ValueError:
        raise UsageError(f"{redact(where)} is damaged: export into another DEST, or delete this one") from None
    different = _differences(found, wanted) if isinstance(found, dict) else ["it is no object"]
    if different:
        raise UsageError(
            f"{redact(destination)} holds another export ({'; '.join(different)}). "
            "Use the same parameters to resume it, another DEST for a new export, or delete this one"
        )
    known = found.get("categories")
    return tuple(known) if known is not None else _settled(where, wanted, categories())


def _settled(where: str, state: dict[str, Any], categories: tuple[str, ...]) -> tuple[str, ...]:
    put_bytes(where, json.dumps({**state, "categories": categories}, indent=1).encode() + b"\n")
    return categories


def read_reports(destination: str) -> dict[int, ExportReport]:
    """The counts of the pieces that are done, by index."""
    names = [
        name for name in list_names(join(destination, STATE_FOLDER)) if name[:-5].isdigit() and name[-5:] == ".json"
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        contents = list(pool.map(lambda name: read_bytes(join(destination, STATE_FOLDER, name)), names))
    try:
        return {int(name[:-5]): ExportReport(**json.loads(data)) for name, data in zip(names, contents, strict=True)}
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{redact(join(destination, STATE_FOLDER))} is damaged ({error}): "
            "export into another DEST, or delete this one"
        ) from None


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    then, now = found.get("dataset", {}), wanted["dataset"]
    if then.get("fingerprint") != now["fingerprint"]:
        return ["of another dataset"]
    if then != now:
        return [f"of this dataset at {then.get('images')} images, it has {now['images']} now"]
    before, after = found.get("parameters", {}), wanted["parameters"]
    keys = dict.fromkeys([*before, *after])
    return [f"{key} was {before.get(key)}, is {after.get(key)}" for key in keys if before.get(key) != after.get(key)]
