"""Every setting of a job, typed and checked: presets and YAML files in, one frozen `JobConfig` out.

The sections `model`, `masks`, `input` and `output` decide what the dataset contains; they are frozen into its plan and
may not change when a job resumes. The section `run` says how to get there on this machine, and may differ every time.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from data_engine.errors import ConfigError
from data_engine.images.settings import InputSettings
from data_engine.masks.floors import Floors
from data_engine.masks.settings import MaskSettings
from data_engine.yaml_settings import checked, overridden, read_settings

DEFAULT_PRESET = "quickstart"

# Settings that came after the first plans, with their defaults. A new setting that decides the content goes in here, or
# no dataset that was begun before it can be resumed. Once here, its default may never change.
_ADDED_LATER: dict[str, Any] = {
    "model.compiled": False,
    "masks.suppression": "box",
    "masks.adaptive_points": False,
    "masks.adaptive_step": 2,
    "output.keep_rejects": 0.0,
    "output.reject_floor_iou": None,
    "output.reject_floor_stability": None,
}
_REJECT_MARGIN = 0.1  # below a threshold, for the floor of what is kept


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _as_section(value: Any) -> Any:
    return {} if value is None else value  # an empty section in YAML


class ModelSettings(_Section):
    """Which weights, in which precision."""

    name: str = Field("starter", description="a known model (data-engine models) or a checkpoint file")
    precision: Literal["reference", "fast"] = Field(
        "reference", description="reference: float32 throughout; fast: bfloat16 image encoder"
    )
    compiled: bool = Field(False, description="through torch.compile: minutes at first, faster then; for GPUs")


class OutputSettings(_Section):
    """How the dataset is cut into commits."""

    images_per_commit: int = Field(1000, ge=1, le=1_000_000, description="images a commit")
    keep_rejects: float = Field(
        0.0, ge=0, le=1, description="share of the images, by a hash of their ids, that keep what the filters reject"
    )
    reject_floor_iou: float | None = Field(
        None,
        allow_inf_nan=False,
        description="rejects below this predicted IoU are only counted; default: pred_iou_thresh - 0.1",
    )
    reject_floor_stability: float | None = Field(
        None, allow_inf_nan=False, description="rejects less stable keep no runs; default: stability_score_thresh - 0.1"
    )


class RaySettings(_Section):
    """How to use a Ray cluster."""

    address: str | None = Field(
        None, description="of the cluster; default: RAY_ADDRESS, the cluster this runs in, or a new one on this machine"
    )
    workers: int | None = Field(
        None, ge=1, description="asked for at once, so that an autoscaler sees it; default: what fits, growing with it"
    )
    gpus_per_worker: float | None = Field(
        None, ge=0, description="default: 1 where the cluster has GPUs, else 0; fractions for small models"
    )
    cpus_per_worker: float | None = Field(None, gt=0, description="default: run.decode_threads with a GPU, else 1")
    max_in_flight: int = Field(2, ge=1, le=16, description="shards a worker holds, so that the next is fetched ahead")
    image_timeout: float = Field(1800, gt=0, description="seconds without a sign of life until a worker is killed")
    start_timeout: float = Field(
        1800, gt=0, description="seconds a worker may take to speak, and then to load the model"
    )
    shard_retries: int = Field(3, ge=0, description="further tries of a shard that cannot be read")
    image_deaths: int = Field(2, ge=1, description="workers an image may kill before it becomes a failed row")
    speculate: bool = Field(True, description="run stragglers a second time when workers have nothing else to do")


class RunSettings(_Section):
    """How to run here. Never changes the result."""

    engine: Literal["local", "ray"] = "local"
    ray: Annotated[RaySettings, BeforeValidator(_as_section)] = RaySettings()
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    decode_threads: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), ge=1, le=256)
    prefetch_images: int = Field(8, ge=1, description="decoded images kept ready for the model")
    image_memory: int = Field(1 << 30, ge=1 << 20, description="bytes of decoded images in flight")
    mask_memory: int = Field(1 << 29, ge=1 << 20, description="bytes of candidate masks held before suppression")
    single_writer: bool = Field(False, description="accept a store without conditional writes; you promise one writer")
    commit_seconds: float = Field(
        600, gt=0, description="commit a slice that is not full when it is so old: bounds what a crash can cost"
    )
    give_up_after: int = Field(20, ge=1, description="stop when the model has failed on so many images in a row")

    @model_validator(mode="after")
    def _one_writer_is_no_cluster(self) -> RunSettings:
        if self.single_writer and self.engine == "ray":
            raise ValueError("single_writer cannot be promised with engine ray: workers write side by side")
        return self


class JobConfig(_Section):
    """A whole job's settings."""

    model: Annotated[ModelSettings, BeforeValidator(_as_section)] = ModelSettings()
    masks: Annotated[MaskSettings, BeforeValidator(_as_section)] = MaskSettings()
    input: Annotated[InputSettings, BeforeValidator(_as_section)] = InputSettings()
    output: Annotated[OutputSettings, BeforeValidator(_as_section)] = OutputSettings()
    run: Annotated[RunSettings, BeforeValidator(_as_section)] = RunSettings()

    @model_validator(mode="after")
    def _rejects_can_be_replayed(self) -> JobConfig:
        if self.output.keep_rejects and self.masks.adaptive_points:
            raise ValueError(
                "output.keep_rejects cannot go with masks.adaptive_points, whose points depend on the thresholds: "
                "leave out one of them"
            )
        return self

    @property
    def reject_floors(self) -> Floors:
        """Down to where an image that keeps its rejects keeps them."""
        return Floors.of(
            self.masks, self.output.reject_floor_iou, self.output.reject_floor_stability, margin=_REJECT_MARGIN
        )

    def content(self) -> dict[str, Any]:
        """The settings that decide what the dataset contains, as plain JSON values.

        Without those of `_ADDED_LATER` that are at their defaults: a plan's fingerprint is made of these values, and
        that of a plan which is older than such a setting must stay what it is.
        """
        only_speed = {"masks": {"points_per_batch"}, "input": {"fetch_threads"}}
        values = self.model_dump(mode="json", exclude={"run": True, **only_speed})
        for name, default in _ADDED_LATER.items():
            section, setting = name.split(".")
            if values[section][setting] == default:
                del values[section][setting]
        return values

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(source: str | Path | None = None, overrides: Iterable[str] = ()) -> JobConfig:
    """A preset's name, a YAML file or nothing (the default preset), then overrides such as "masks.points_per_side=16".

    Raises ConfigError naming the file, the key, the value and, for an unknown key, the nearest known one.
    """
    where = str(source or DEFAULT_PRESET)
    return override_settings(read_settings(_find(where)), overrides, where)


def override_settings(base: Mapping[str, Any], overrides: Iterable[str], where: str) -> JobConfig:
    """Plain values and overrides such as "masks.points_per_side=16" -> a checked configuration. Raises ConfigError."""
    return resolve(overridden(base, overrides), where)


def resolve(values: Mapping[str, Any], where: str) -> JobConfig:
    """Plain values -> a checked configuration. Raises ConfigError."""
    return checked(JobConfig, values, where)


def presets() -> dict[str, Path]:
    """Presets by name."""
    packaged = Path(__file__).parent / "configs"  # in an installed package; in a checkout they lie beside it
    folder = packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if _is_of_jobs(path)}


def _is_of_jobs(path: Path) -> bool:
    """Whether a YAML file has the section that every job's has, and not only a word of it."""
    return any(line.startswith("masks:") for line in path.read_text(encoding="utf-8").splitlines())


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """ "masks.points_per_side: 32 -> 16" for every setting that differs. One that came later and is missing has its
    default."""
    found = []
    for key in sorted({*old, *new}):
        default = _ADDED_LATER.get(f"{prefix}{key}".removeprefix("settings."))
        a, b = old.get(key, default), new.get(key, default)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {json.dumps(a)} -> {json.dumps(b)}")
    return found


def _find(name: str) -> Path:
    known = presets()
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if not path.is_file():
        guess = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        raise ConfigError(f"no configuration {name!r}: not a preset ({', '.join(known)}) and no such file{hint}")
    return path
