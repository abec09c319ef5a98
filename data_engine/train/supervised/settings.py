"""Every setting of a training, typed and checked: YAML files and overrides in, one frozen `TrainingSettings` out.

The section `run` says how to get there on this machine and may differ every time; all others decide what comes out, and
may not change when a training resumes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from data_engine.sam.model import SamArchitecture
from data_engine.signed_urls import unsigned
from data_engine.storage import is_local, redact
from data_engine.train.data.labelled import DataFilters

_Momentum = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _as_section(value: Any) -> Any:
    return {} if value is None else value  # an empty section in YAML


class LoraSettings(_Section):
    """Low-rank adapters (arXiv 2106.09685) on the image encoder's attention; its own weights stay as they are."""

    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0, description="the adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    layers: tuple[Literal["qkv", "proj"], ...] = Field(("qkv", "proj"), min_length=1)


class ModelSettings(_Section):
    """Where the training starts."""

    name: str | None = Field(None, description="a known model, a checkpoint file or URL")
    architecture: dict[str, Any] | None = Field(None, description="sizes of a SAM to train from random weights")
    lora: LoraSettings | None = None

    @model_validator(mode="after")
    def _one_start(self) -> ModelSettings:
        if (self.name is None) == (self.architecture is None):
            raise ValueError("give either name (weights to start from) or architecture (from random weights)")
        if self.architecture is not None:
            self.sizes()
        return self

    def sizes(self) -> SamArchitecture:
        """The sizes to train from random weights. Raises ValueError for unknown, missing or impossible ones."""
        values = dict(self.architecture or {})
        blocks = values.pop("global_blocks", ())
        if not isinstance(blocks, list | tuple) or not all(isinstance(block, int) for block in blocks):
            raise ValueError(f"architecture: global_blocks is {blocks!r}: write a list of the numbers of blocks")
        for name, value in values.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"architecture: {name} is {value!r}: write a whole number above 0")
        try:
            sizes = SamArchitecture(global_blocks=tuple(blocks), **values)
        except TypeError as error:
            raise ValueError(f"architecture: {str(error).partition(' ')[2]}") from None
        if sizes.image_size % sizes.patch_size or sizes.embed_dim % sizes.num_heads:
            raise ValueError("architecture: image_size must be a multiple of patch_size, embed_dim of num_heads")
        return sizes


class DataSettings(_Section):
    """What is seen of the images."""

    filters: Annotated[DataFilters, BeforeValidator(_as_section)] = DataFilters()
    validation: str | None = Field(None, description="specification of held-out images; default: no validation")
    jitter: tuple[float, float] | None = Field(
        (0.5, 2.0), description="the long side is scaled to so many input frames, then cropped; null: the whole image"
    )
    flip: bool = Field(True, description="mirror half of the views")
    views_per_image: int | None = Field(
        None, ge=1, description="so many random views of an image over all epochs; default: a new one each time"
    )
    smallest_mask: int = Field(10, ge=1, description="pixels of the input frame: masks of fewer are not prompted")

    @model_validator(mode="after")
    def _a_range(self) -> DataSettings:
        if self.jitter is not None and not 0 < self.jitter[0] <= self.jitter[1] <= 16:
            raise ValueError(f"jitter {list(self.jitter)}: write [from, to] with 0 < from <= to <= 16")
        return self


class PromptSettings(_Section):
    """The simulated person. The defaults are SAM's: 1 first prompt, 8 corrections, 2 rounds without a new point."""

    per_image: int = Field(32, ge=1, le=1024, description="masks of an image that are prompted, drawn anew each time")
    box_share: float = Field(0.5, ge=0, le=1, description="first prompts that are boxes; the others are points")
    box_noise: float = Field(0.1, ge=0, description="standard deviation of a box's corners, in sides of the box")
    box_noise_max: float = Field(20.0, ge=0, description="in pixels of the input frame")
    corrections: int = Field(8, ge=0, le=64, description="rounds with a point from the error region")
    mask_only_rounds: int = Field(2, ge=0, le=16, description="rounds with the last mask and no new point")


class LossSettings(_Section):
    focal: float = Field(20.0, ge=0)
    dice: float = Field(1.0, ge=0)
    iou: float = Field(1.0, ge=0, description="of the squared error of predicted IoU")
    upsample: Literal[1, 2, 4] = Field(
        4, description="the loss looks at logits at so many times their size; 4 is the input frame's"
    )


class OptimizerSettings(_Section):
    """AdamW and its schedule."""

    learning_rate: float = Field(1e-4, gt=0)
    betas: tuple[_Momentum, _Momentum] = (0.9, 0.999)
    weight_decay: float = Field(0.1, ge=0, description="of matrices and kernels only")
    layer_decay: float = Field(
        0.8, gt=0, le=1, description="of the learning rate, a block of the encoder towards input"
    )
    warmup_steps: int = Field(250, ge=0)
    schedule: Literal["step", "cosine", "constant"] = "step"
    drops: tuple[float, ...] = Field((0.6667, 0.963), description="step: shares of the run at which the rate drops")
    drop_factor: float = Field(0.1, gt=0, lt=1)
    gradient_clip: float | None = Field(1.0, gt=0, description="of the global norm")


class TrainSettings(_Section):
    steps: int = Field(1000, ge=1, description="optimiser steps")
    images_per_batch: int = Field(1, ge=1, description="encoded together")
    accumulate: int = Field(4, ge=1, description="batches a step, on each worker")
    frozen: tuple[str, ...] = Field(
        ("image_encoder.*",), description="patterns of parameter names that stay as they are"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast, weights stay float32")
    drop_path: float = Field(0.0, ge=0, lt=1, description="of the last encoder block, growing linearly to it")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the average weights, which are what is exported")
    give_up_after: int = Field(10, ge=1, description="stop when so many steps in a row had no finite loss")
    seed: int = Field(0, ge=0, lt=2**63)


class RaySettings(_Section):
    """Which cluster trains, where there are several workers."""

    address: str | None = Field(
        None, description="of the cluster; default: RAY_ADDRESS, the cluster this runs in, or a new one on this machine"
    )


class RunSettings(_Section):
    """How to run here. Changes no result."""

    ray: Annotated[RaySettings, BeforeValidator(_as_section)] = RaySettings()

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    loader_threads: int = Field(2, ge=1, le=64, description="threads that fetch, decode and cut ahead of the model")
    gradient_checkpointing: bool = Field(False, description="recompute encoder blocks: less memory, a third more time")
    embeddings: Literal["none", "memory", "disk"] = Field(
        "memory", description="where embeddings are kept when the whole image encoder is frozen"
    )
    embeddings_folder: str | None = Field(None, description="disk: default is embeddings/ in the output")
    embeddings_bytes: int = Field(2**31, ge=0, description="most that is kept")
    state_every_steps: int = Field(200, ge=1)
    log_every_steps: int = Field(10, ge=1, description="lines on the console; the log file has every step")
    tensorboard: bool = True
    validate_every_steps: int | None = Field(None, ge=1, description="default: after each epoch")
    validation_images: int | None = Field(None, ge=1, description="the first so many; default: all")
    validation_masks_per_image: int | None = Field(20, ge=1)
    validation_clicks: tuple[Annotated[int, Field(ge=1, le=50)], ...] = Field((1, 3), min_length=1)
    pictures: int = Field(4, ge=0, description="held-out images drawn at each validation")

    @model_validator(mode="after")
    def _embeddings_are_local(self) -> RunSettings:
        if self.embeddings_folder is not None and not is_local(self.embeddings_folder):
            raise ValueError(
                f"embeddings_folder is {redact(self.embeddings_folder)}: embeddings are read at every step; name a "
                "folder on a disk of this machine"
            )
        return self


class TrainingSettings(_Section):
    model: Annotated[ModelSettings, BeforeValidator(_as_section)]
    data: Annotated[DataSettings, BeforeValidator(_as_section)] = DataSettings()
    prompts: Annotated[PromptSettings, BeforeValidator(_as_section)] = PromptSettings()
    loss: Annotated[LossSettings, BeforeValidator(_as_section)] = LossSettings()
    optimizer: Annotated[OptimizerSettings, BeforeValidator(_as_section)] = OptimizerSettings()
    train: Annotated[TrainSettings, BeforeValidator(_as_section)] = TrainSettings()
    run: Annotated[RunSettings, BeforeValidator(_as_section)] = RunSettings()

    def content(self) -> dict[str, Any]:
        """The settings that decide what is trained, as plain JSON values, without the secrets of a signed link."""
        values = self.model_dump(mode="json", exclude={"run": True, "data": {"validation"}})
        if self.model.name is not None:
            values["model"]["name"] = unsigned(self.model.name)
        return values
