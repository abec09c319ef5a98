"""From the text that names training data to the reader: `dataset:masks`, `3*sa1b:sa1b/ + scenes:1000`, `photos/`."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from data_engine.dataset.commits import PLAN_FILE
from data_engine.errors import ConfigError, StorageError, UsageError
from data_engine.evaluation.places import is_folder, is_there, over_http
from data_engine.signed_urls import without_query
from data_engine.storage import is_local, join, list_names, redact
from data_engine.train.data.labelled import DataFilters, TrainingData
from data_engine.train.data.pool import Pool

KINDS = ("dataset", "sa1b", "coco", "idmaps", "scenes")
_WEIGHTED = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*\*\s*(?=\S)")
_SCENES = re.compile(r"(\d+)(?:x(\d+))?(?:@(.+))?")


def opened(spec: str, filters: DataFilters) -> TrainingData:
    """See `open_training_data`."""
    from data_engine.train.data.mixture import Mixture

    parts = [_weighted(part) for part in re.split(r"(?:^|\s)\+\s", spec)]
    if any(not rest for _, rest in parts):
        raise ConfigError(f"training data {spec!r}: name data such as dataset:PATH, and mix with ' + '")
    pools = [_open(rest, filters) for _, rest in parts]
    return pools[0] if len(pools) == 1 else Mixture(pools, [weight for weight, _ in parts])


def _weighted(part: str) -> tuple[float, str]:
    """ "3*dataset:masks" -> (3.0, "dataset:masks")."""
    match = _WEIGHTED.match(part)
    return (float(match[1]), part[match.end() :].strip()) if match else (1.0, part.strip())


def _open(spec: str, filters: DataFilters) -> Pool:
    kind, separator, rest = spec.partition(":")
    if not separator or kind not in KINDS:
        if separator and not rest.startswith("//") and not Path(spec).exists():
            raise ConfigError(f"training data {spec!r}: unknown kind {kind!r}; use one of {', '.join(KINDS)}")
        kind, rest = _kind_of(spec), spec
    if not rest:
        raise ConfigError(f"training data {spec!r}: say where it is")
    return _READERS[kind](rest, filters)


def _kind_of(path: str) -> str:
    """What lies at a path without a kind. Raises ConfigError where that is not clear."""
    from data_engine.evaluation.layouts import coco_file_in, is_coco

    if any(is_coco(part) for part in (path, *_befores(path))):
        return "coco"
    if path.lower().endswith(".tar"):
        return "sa1b"
    if is_there(join(path, PLAN_FILE)):
        return "dataset"
    if coco_file_in(path) is not None:
        return "coco"
    if is_folder(join(path, "segments")):
        return "idmaps"
    names = _names(path)
    stems = {name.rpartition(".")[0] for name in names if name.lower().endswith(".json")}
    if any(name.lower().endswith((".jpg", ".jpeg")) and name.rpartition(".")[0] in stems for name in names) or any(
        name.lower().endswith(".tar") for name in names
    ):
        return "sa1b"
    raise ConfigError(
        f"training data {path}: cannot tell what it is; write the kind before it: "
        + ", ".join(f"{kind}:{'COUNT' if kind == 'scenes' else path}" for kind in KINDS)
    )


def _names(uri: str) -> list[str]:
    try:
        return list_names(uri)
    except (StorageError, NotADirectoryError):
        return []


def _dataset(rest: str, filters: DataFilters) -> Pool:
    """PATH, PATH#dedup without the newest version's duplicates, or PATH#VERSION without those of a version."""
    from data_engine.train.data.dataset_masks import DatasetMasks

    root, _, version = rest.rpartition("#")
    if not root or is_there(join(rest, PLAN_FILE)):
        return DatasetMasks(rest, filters)
    return DatasetMasks(root, filters, deduplicated=True if version == "dedup" else version)


def _sa1b(rest: str, filters: DataFilters) -> Pool:
    from data_engine.train.data.sa1b import Sa1b

    return Sa1b(rest, filters)


def _coco(rest: str, filters: DataFilters) -> Pool:
    """JSON@IMAGES; JSON, or a folder that has it, with the images in images/ or beside it."""
    from data_engine.evaluation.coco_truth import coco_truth
    from data_engine.evaluation.layouts import coco_file_in, is_coco
    from data_engine.evaluation.photographs import images_of
    from data_engine.train.data.ground_truth import TruthMasks

    first, images = _two(rest, "coco", "JSON@IMAGES")
    file: str | None = first
    if is_folder(first) or (over_http(first) and not is_coco(first)):
        file = coco_file_in(first)
    if file is None:
        raise ConfigError(
            f"training data coco:{redact(rest)}: {redact(first)} has no instances.json; write JSON@IMAGES"
        )
    return TruthMasks(coco_truth(images or images_of(_folder_of(file)), file), filters)


def _id_maps(rest: str, filters: DataFilters) -> Pool:
    """IMAGES@SEGMENTS, or a folder with images/ and segments/."""
    from data_engine.evaluation.id_map_truth import id_map_truth
    from data_engine.evaluation.photographs import images_of
    from data_engine.train.data.ground_truth import TruthMasks

    first, second = _two(rest, "idmaps", "IMAGES@SEGMENTS")
    images, maps = (first, second) if second else (images_of(first), join(first, "segments"))
    return TruthMasks(id_map_truth(images, maps), filters)


def _scenes(rest: str, filters: DataFilters) -> Pool:
    """COUNT, COUNTxSIDE, and @PHOTOGRAPHS after either."""
    from data_engine.train.data.scenes import PhotographScenes, Scenes

    match = _SCENES.fullmatch(rest)
    if match is None:
        raise ConfigError(f"training data scenes:{rest}: write scenes:COUNT, scenes:COUNTxSIDE or scenes:COUNT@FOLDER")
    count, side, photographs = int(match[1]), int(match[2] or 256), match[3]
    return PhotographScenes(count, Path(photographs), filters, side) if photographs else Scenes(count, filters, side)


_READERS: dict[str, Callable[[str, DataFilters], Pool]] = {
    "dataset": _dataset,
    "sa1b": _sa1b,
    "coco": _coco,
    "idmaps": _id_maps,
    "scenes": _scenes,
}


def _two(rest: str, kind: str, form: str) -> tuple[str, str | None]:
    """Two paths or URLs joined by @, which may be in their names too: cut where both sides are there."""
    name = f"training data {kind}:{redact(rest)}"
    befores = _befores(rest)
    if (is_local(rest) or not befores) and _is_there(rest):
        return rest, None
    if not befores:
        raise ConfigError(f"{name}: it does not exist")
    for before in befores:
        sides = (before, rest[len(before) + 1 :])
        # What is local first: it costs no request.
        if all(_is_there(side) for side in sorted(sides, key=is_local, reverse=True)):
            return sides
    with suppress(UsageError):  # a URL with what would be a password in it
        if not is_local(rest) and _is_there(rest):
            return rest, None
    before = befores[0]
    lost = [redact(side) for side in (before, rest[len(before) + 1 :]) if not _is_there(side)]
    which = f": {' and '.join(lost)}" if len(befores) == 1 else ""
    raise ConfigError(f"{name}: {form}, of which one does not exist{which}")


def _befores(text: str) -> list[str]:
    """What is before each @."""
    return [text[:i] for i, character in enumerate(text) if character == "@"]


def _is_there(uri: str) -> bool:
    """As `is_there`, but of a web server's folder, which cannot be asked for."""
    return bool(uri) and (over_http(uri) or is_there(uri))


def _folder_of(file: str) -> str:
    return str(Path(file).parent) if is_local(file) else without_query(file).rpartition("/")[0]
