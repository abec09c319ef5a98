"""Trains the starter model on one GPU, every image of a step at once: see train_starter_gpu.sh.

The scenes, their prompts and their targets are made on the device; nothing but seeds crosses over. A step is a function
of the seed and its number, so that a run which was cut goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from data_engine.sam.checkpoints import read_checkpoint
from data_engine.sam.model import Sam, SamArchitecture
from data_engine.train.data.batch_decoding import Answers, BatchDecoder
from data_engine.train.data.device_prompts import PromptBatch, draw_prompts
from data_engine.train.data.photograph_views import PhotographViews
from data_engine.train.data.torch_scenes import SceneBatch, SceneGenerator
from data_engine.train.enlarge import enlarged
from data_engine.train.initialise import new_model
from data_engine.train.losses import DecodingLoss, decoding_loss, pairwise_losses

CHECKPOINT, WEIGHTS, FACTS = "checkpoint.pt", "starter.safetensors", "train_starter_gpu.json"
LOG = "log.jsonl"
SHAPES = ((1.0, 1.0), (0.75, 1.0), (2 / 3, 1.0), (1.0, 0.75), (0.5625, 1.0), (1.0, 2 / 3))  # height and width
HELD_OUT = 1 << 40  # seeds of scenes that are measured on
LOG_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class Settings:
    architecture: dict[str, Any]
    start: str | None  # weights of a smaller input to start from: data_engine/train/enlarge.py
    start_zoom: float
    photographs: str
    photograph_share: float
    seed: int
    seconds: float
    images_per_step: int
    clicks: int
    boxes: int
    grid_share: float
    corrections: float
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    decay_share: float
    gradient_clip: float
    ema_decay: float
    focal_weight: float
    dice_weight: float
    iou_weight: float
    save_every_seconds: float

    @classmethod
    def read(cls, path: Path, **changed: Any) -> Settings:
        values = {**yaml.safe_load(path.read_text()), **{key: value for key, value in changed.items() if value}}
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise SystemExit(f"{path}: unknown settings {unknown}")
        return cls(**values)

    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("focal_weight", "dice_weight", "iou_weight")}


class Starter:
    """Model, average, optimiser and how far they are."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = device
        values = dict(settings.architecture)
        values["global_blocks"] = tuple(values["global_blocks"])
        self.model = start_model(settings, SamArchitecture(**values)).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
        self.progress: dict[str, float] = {"step": 0, "images": 0, "prompts": 0, "seconds": 0.0}

    def save(self, folder: Path) -> None:
        temporary = folder / f"{CHECKPOINT}.new"
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        torch.save({**parts, "progress": self.progress}, temporary)
        temporary.replace(folder / CHECKPOINT)

    def resume(self, folder: Path) -> None:
        if (folder / CHECKPOINT).is_file():
            # By way of the CPU, where the optimiser's counts of steps stay: on a GPU each step would wait for them.
            state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
            for name in ("model", "average", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
            self.progress = state["progress"]

    def share_done(self) -> float:
        return self.progress["seconds"] / self.settings.seconds

    def rate(self) -> float:
        settings = self.settings
        warmup = (self.progress["step"] + 1) / settings.warmup_steps
        return settings.learning_rate * min(1.0, warmup, max(0.0, (1 - self.share_done()) / settings.decay_share))

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.settings.ema_decay, (1 + self.progress["step"]) / (10 + self.progress["step"]))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)


def start_model(settings: Settings, architecture: SamArchitecture) -> Sam:
    if settings.start is None:
        return new_model(architecture)
    stored = read_checkpoint(settings.start)
    if replace(stored.architecture, image_size=architecture.image_size) != architecture:
        raise SystemExit(f"{settings.start} holds {stored.architecture}, which cannot grow into {architecture}")
    return enlarged(stored.architecture, stored.state, architecture.image_size, settings.start_zoom)


class Images:
    """What a step is trained on."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        from data_engine.train.photographs import load_photographs

        self.settings = settings
        self.scenes = SceneGenerator(device)
        shared = settings.photograph_share > 0
        self.views = PhotographViews(load_photographs(Path(settings.photographs)), device) if shared else None

    def draw(self, count: int, seed: int, share: float) -> SceneBatch:
        """`count` images of one random shape, `share` of them views of photographs."""
        rng = np.random.default_rng([self.settings.seed, seed])
        frame = self.settings.architecture["image_size"]
        height, width = (round(part * frame) for part in SHAPES[rng.integers(len(SHAPES))])
        views = round(count * share) if self.views is not None else 0
        seeds = rng.integers(1 << 62, size=2).tolist()
        parts = [self.scenes.draw(count - views, height, width, seeds[0])] if views < count else []
        if views and self.views is not None:
            parts.append(self.views.draw(views, height, width, seeds[1]))
        return SceneBatch(torch.cat([part.images for part in parts]), torch.cat([part.levels for part in parts]))


def loss_of(answers: Answers, weights: dict[str, float]) -> DecodingLoss:
    """Prompts without a valid target do not count."""
    kept = answers.valid.any(1)
    return decoding_loss(answers.logits[kept], answers.iou[kept], answers.targets[kept], answers.valid[kept], **weights)


def prompts_of(batch: SceneBatch, settings: Settings, seed: int) -> PromptBatch:
    frame = settings.architecture["image_size"]
    side = 4 * frame // settings.architecture["patch_size"]
    how = {"clicks": settings.clicks, "boxes": settings.boxes, "grid_share": settings.grid_share}
    return draw_prompts(batch.levels, frame=frame, mask_side=side, seed=seed, **how)


def train_step(starter: Starter, images: Images) -> DecodingLoss:
    settings, progress = starter.settings, starter.progress
    number = int(progress["step"])
    batch = images.draw(settings.images_per_step, number, settings.photograph_share)
    decoder = BatchDecoder(starter.model, batch, prompts_of(batch, settings, number))
    answers = decoder.first()
    loss = loss_of(answers, settings.weights())
    total = loss.total
    if np.random.default_rng([settings.seed, number, 1]).random() < settings.corrections:
        generator = torch.Generator(starter.device).manual_seed(number)
        total = (total + loss_of(decoder.corrected(answers, generator), settings.weights()).total) / 2
    total.backward()
    starter.update()
    progress["step"] += 1
    progress["images"] += len(batch.images)
    progress["prompts"] += answers.valid.shape[0]
    return loss


@torch.no_grad()
def held_out(starter: Starter, images: Images, batches: int = 4) -> dict[str, float]:
    """Mean IoU of the average weights on scenes that are never trained on: of clicks and boxes, by target."""
    chosen, best = [], []
    for index in range(batches):
        batch = images.draw(min(64, starter.settings.images_per_step), HELD_OUT + index, share=0.0)
        answers = BatchDecoder(starter.average, batch, prompts_of(batch, starter.settings, HELD_OUT + index)).first()
        iou = pairwise_losses(answers.logits, answers.targets).iou.masked_fill(~answers.valid[:, None], 0).amax(2)
        kept = answers.valid.any(1)
        picked = 1 + answers.iou[:, 1:].argmax(1, keepdim=True)
        chosen.append(iou.gather(1, picked)[kept, 0])
        best.append(iou[:, 1:].amax(1)[kept])
    values = {"highest_predicted_iou": torch.cat(chosen), "best_of_three": torch.cat(best)}
    return {name: round(float(value.mean()), 4) for name, value in values.items()}


def run(starter: Starter, images: Images, folder: Path, output: Path, stop_after: float) -> dict[str, Any]:
    """Trains until the budget or this call's time is over. Returns the facts of the weights, which are in `output` from
    the first checkpoint on: a call that is cut off leaves those."""
    begun = last_saved = time.monotonic()
    before = starter.progress["seconds"]
    while starter.share_done() < 1 and time.monotonic() - begun < stop_after:
        loss = train_step(starter, images)
        if starter.progress["step"] % LOG_EVERY == 0 or starter.progress["step"] == 1:
            figures = {name: getattr(loss, name).detach() for name in ("total", "focal", "dice", "best_iou")}
            shown = {name: round(float(figure), 4) for name, figure in figures.items()}
            starter.progress["seconds"] = before + time.monotonic() - begun
            line = json.dumps({**starter.progress, "rate": round(starter.rate(), 7), **shown})
            print(line, flush=True)
            with (folder / LOG).open("a") as file:
                file.write(line + "\n")
        starter.progress["seconds"] = before + time.monotonic() - begun
        if time.monotonic() - last_saved > starter.settings.save_every_seconds:
            starter.save(folder)
            export(starter, output)
            last_saved = time.monotonic()
    starter.save(folder)
    return export(starter, output)


def export(starter: Starter, folder: Path) -> dict[str, Any]:
    from data_engine.sam.checkpoint_export import write_checkpoint

    state = {name: tensor.cpu() for name, tensor in starter.average.state_dict().items()}
    written = write_checkpoint(
        starter.model.architecture, state, folder / WEIGHTS, "segment-anything", "float16", overwrite=True
    )
    return {"file": WEIGHTS, "sha256": written.sha256, "bytes": written.size}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the starter model on one GPU.")
    parser.add_argument("--config", type=Path, default=Path("configs/starter_gpu.yaml"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="folder for weights and figures")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, help="of training, over all calls")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds of training in this call")
    parser.add_argument("--images-per-step", type=int)
    arguments = parser.parse_args()
    settings = Settings.read(arguments.config, seconds=arguments.seconds, images_per_step=arguments.images_per_step)
    for folder in (arguments.work, arguments.output):
        folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    torch.set_float32_matmul_precision("high")
    starter = Starter(settings, device)
    starter.resume(arguments.work)
    images = Images(settings, device)
    weights = run(starter, images, arguments.work, arguments.output, arguments.stop_after)
    facts = {
        "settings": {field.name: getattr(settings, field.name) for field in fields(settings)},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "progress": starter.progress,
        "finished": starter.share_done() >= 1,
        "held_out_scenes": held_out(starter, images),
        "weights": weights,
        "log": [json.loads(line) for line in (arguments.work / LOG).read_text().splitlines()],
    }
    (arguments.output / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    shown = {name: facts[name] for name in ("device", "progress", "finished", "held_out_scenes", "weights")}
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
