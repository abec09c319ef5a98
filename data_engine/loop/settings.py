"""Every setting of a loop: a YAML file and overrides in, one frozen `LoopSettings` out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from data_engine.config import JobConfig, load_config
from data_engine.signed_urls import mask_urls, unsigned
from data_engine.train.data.labelled import DataFilters
from data_engine.yaml_settings import checked, parse_override, read_settings

Stage = Literal["assisted", "semi-automatic", "automatic"]

_WITH_MORE_INSIDE = ("generate", "training")  # sections whose settings are those of another command


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _as_section(value: Any) -> Any:
    return {} if value is None else value  # an empty section in YAML


class OtherSettings(_Section):
    """The settings of another command: a file or preset, and single settings by their dotted names."""

    config: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)

    def overrides(self) -> list[str]:
        return [f"{key}={json.dumps(value)}" for key, value in self.set.items()]


class EvaluationPlan(_Section):
    """What the model is measured on, before the first round and after each."""

    data: str | None = Field(None, description="folder of photographs; those of the loop's input are left out")
    ground_truth: str | None = Field(None, description="as of `data-engine evaluate`")
    clicks: tuple[Annotated[int, Field(ge=1, le=50)], ...] = (1, 3)
    boxes: bool = True
    automatic: bool = Field(True, description="recall of automatic generation with the settings of `generate`")
    limit: int | None = Field(None, ge=1, description="only the first so many images")
    masks_per_image: int | None = Field(None, ge=1)
    smallest_share: float = Field(0.001, ge=0, le=1)
    seed: int = Field(0, ge=0)


class LoopSettings(_Section):
    rounds: int = Field(2, ge=1)
    model: str = Field("starter", description="where round 1 starts: a known model or a checkpoint file")
    start_from: Literal["previous", "first"] = Field(
        "previous", description="what each round's training starts from: the model of the round before, or of round 1"
    )
    stages: tuple[Stage, ...] = Field(
        ("automatic",), min_length=1, description="of round 1, 2, …; the last one goes on for further rounds"
    )
    people: str | None = Field(
        None, description="masks of people, as training data: coco:corrected-{round}.json@photos"
    )
    mix: str | None = Field(None, description="more training data for every round, such as 1*scenes:500")
    deduplicate: bool = Field(False, description="do not train on images that are there twice, or nearly so")
    datasets: str | None = Field(None, description="folder or URL for the datasets of the rounds; default: OUTPUT")
    training_workers: int = Field(1, ge=1, description="train with so many workers through Ray Train")
    filters: Annotated[DataFilters, BeforeValidator(_as_section)] = DataFilters()
    generate: Annotated[OtherSettings, BeforeValidator(_as_section)] = OtherSettings()
    training: Annotated[OtherSettings, BeforeValidator(_as_section)] = OtherSettings()
    evaluation: Annotated[EvaluationPlan, BeforeValidator(_as_section)] = EvaluationPlan()

    @model_validator(mode="after")
    def _people_are_named(self) -> LoopSettings:
        if self.people is None and set(self.stages) != {"automatic"}:
            raise ValueError(
                "stages with people need `people`: where their masks will be, such as coco:{round}.json@in"
            )
        return self

    def stage(self, number: int) -> Stage:
        """Of round 1, 2, …"""
        return self.stages[min(number, len(self.stages)) - 1]

    def job(self, model: str) -> JobConfig:
        """What `generate` is told, with `model`."""
        named = f"model.name={json.dumps(model)}"
        return load_config(self.generate.config, [*self.generate.overrides(), named])

    def trainer(self, model: str) -> Any:
        """The TrainingSettings of a round that starts from `model`."""
        from data_engine.train.supervised.settings_file import load_settings

        limits = {name: getattr(self.filters, name) for name in self.filters.__dataclass_fields__}
        ours = [f"model.name={json.dumps(model)}", f"data.filters={json.dumps(limits)}"]
        return load_settings(self.training.config, [*self.training.overrides(), *ours])

    def content(self) -> dict[str, Any]:
        """What decides the results, as plain values without secrets: what the rounds of one loop have in common."""
        plain = self.model_dump(mode="json", exclude={"rounds", "datasets", "generate", "training"})
        model = unsigned(self.model)
        data = {name: plain[name] and mask_urls(plain[name]) for name in ("people", "mix")}
        others = {"generate": self.job(model).content(), "training": self.trainer(model).content()}
        return {**plain, "model": model, **data, **others}


def load_loop_settings(source: str | Path | None = None, overrides: Iterable[str] = ()) -> LoopSettings:
    """A YAML file (default: the packaged loop.yaml), then overrides such as "rounds=3", "training.train.steps=50".

    Raises ConfigError naming the file, the setting and what is wrong with it.
    """
    path = Path(source).expanduser() if source is not None else _packaged()
    values = read_settings(path)
    for override in overrides:
        _put(values, *parse_override(override))
    settings = checked(LoopSettings, values, str(path))
    settings.content()  # what is wrong in the settings of the other commands is said now, not hours later
    return settings


def _packaged() -> Path:
    folder = Path(__file__).parents[1] / "configs"
    return (folder if folder.is_dir() else Path(__file__).parents[2] / "configs") / "loop.yaml"


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets "rounds", "evaluation.data", or "training.train.steps": the setting `train.steps` of the training."""
    section, _, rest = key.partition(".")
    if not rest:
        values[section] = value
        return
    inner = values.get(section)
    inner = values[section] = dict(inner) if isinstance(inner, Mapping) else {}
    single = inner.get("set") or {}
    if section in _WITH_MORE_INSIDE and rest not in ("config", "set") and isinstance(single, Mapping):
        inner["set"] = {**single, rest.removeprefix("set."): value}
    elif section not in _WITH_MORE_INSIDE or rest in ("config", "set"):  # else `set` is no mapping: the check says so
        inner[rest] = value
