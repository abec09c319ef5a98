"""The training loop: one step on a batch of samples, the schedule, checkpoints that survive kill -9."""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data_engine.sam.model import Sam
from data_engine.train.affinity import AffinityHead, affinity_loss
from data_engine.train.config import TrainConfig
from data_engine.train.decoding import answer_correction, answer_first, at_phase, correct
from data_engine.train.losses import DecodingLoss, decoding_loss
from data_engine.train.precision import WorkingCopy
from data_engine.train.samples import Sample
from data_engine.train.weight_decay import is_decayed

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


@dataclass(slots=True)
class Progress:
    step: int = 0
    images: int = 0
    prompts: int = 0
    seconds: float = 0.0


class Trainer:
    """Trains a Sam in place. `average` is the exponential moving average of its weights: what to ship."""

    def __init__(
        self, model: Sam, config: TrainConfig, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.model = model
        self.config = config
        self.folder = folder
        self.clock = clock
        self.progress = Progress()
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.affinity = AffinityHead(config.architecture).to(next(model.parameters()).device)
        groups = [*_parameter_groups(model, config.weight_decay), *_parameter_groups(self.affinity, 0.0)]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
        self.working = WorkingCopy(model, getattr(torch, config.compute_dtype))

    def run(self, batches: Iterator[list[Sample]]) -> None:
        """Trains on every batch, logging and writing checkpoints on the way and at the end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        started = saved = self.clock()
        before = self.progress.seconds
        recent: list[DecodingLoss] = []
        for batch in batches:
            recent.append(self.step(batch))
            self.progress.seconds = before + self.clock() - started
            if self.share_done() >= 1:
                break
            if self.progress.step % self.config.log_every == 0:
                self._log(recent)
                recent = []
            if self.clock() - saved >= self.config.checkpoint_every_s:
                self.save()
                saved = self.clock()
        self.save()

    def step(self, batch: list[Sample]) -> DecodingLoss:
        """One optimiser step on the mean loss of the batch's images."""
        config, working = self.config, self.working
        device = next(self.model.parameters()).device
        working.refresh()
        model = working.model
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.progress.step)
        with torch.no_grad():
            pixels = torch.stack([sample.pixels for sample in batch]).to(device)
            images = model.normalise(pixels, [sample.size for sample in batch]).to(working.dtype)
            positions = model.prompt_encoder.dense_positions().to(working.dtype)
        embeddings = model.image_encoder(images)
        # Decoding goes image by image, each backward pass ending at the embedding: one image's activations in memory.
        leaf = embeddings.detach().requires_grad_()
        losses = []
        for sample, embedding in zip(batch, leaf.flatten(2).mT, strict=True):
            loss = self._image_loss(model, embedding, positions, sample, generator)
            total = loss.total
            if config.affinity_weight:
                total = total + config.affinity_weight * self._affinity_loss(model, embedding, sample, generator)
            (total / len(batch)).backward()
            losses.append(loss)
        embeddings.backward(leaf.grad)
        working.hand_over_gradients()
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.affinity.parameters()], config.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.progress.step, self.share_done())
        self.optimizer.step()
        self._update_average()
        self.progress.step += 1
        self.progress.images += len(batch)
        self.progress.prompts += sum(len(sample.valid) for sample in batch)
        return _mean(losses)

    def _image_loss(
        self, model: Sam, embedding: Tensor, positions: Tensor, sample: Sample, generator: torch.Generator
    ) -> DecodingLoss:
        config = self.config
        weights = {
            "focal_weight": config.focal_weight,
            "dice_weight": config.dice_weight,
            "iou_weight": config.iou_weight,
        }
        row, column = torch.randint(2, (2,), generator=generator).tolist()
        phase = (row, column)
        answer = answer_first(model, embedding, positions, sample, phase)
        targets = at_phase(sample.targets, phase)
        loss = decoding_loss(answer.logits, answer.predicted_iou, targets, sample.valid, **weights)
        if torch.rand((), generator=generator) < config.refine_share:
            stride = model.architecture.patch_size // 4
            correction = correct(model, answer, sample, phase, stride, generator)
            second = answer_correction(model, embedding, positions, correction, phase)
            known = torch.ones(len(correction.targets), 1, dtype=torch.bool)
            targets = at_phase(correction.targets, phase)
            refined = decoding_loss(second.logits, second.predicted_iou, targets, known, **weights)
            loss.total = (loss.total + refined.total) / 2
        return loss

    def _affinity_loss(self, model: Sam, embedding: Tensor, sample: Sample, generator: torch.Generator) -> Tensor:
        row, column = torch.randint(2, (2,), generator=generator).tolist()
        return affinity_loss(
            self.affinity,
            model.mask_decoder,
            embedding,
            sample.levels.to(embedding.device),
            (row, column),
            pixels=self.config.affinity_pixels,
            focal_weight=self.config.focal_weight,
            dice_weight=self.config.dice_weight,
            generator=generator,
        )

    def share_done(self) -> float:
        """How much of the run is over, by its steps or by its time."""
        budget = self.config.minutes
        by_time = self.progress.seconds / (60 * budget) if budget is not None else 0.0
        return max(self.progress.step / self.config.steps, by_time)

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on the average follows closely, or it would remember the random start.
        decay = min(self.config.ema_decay, (1 + self.progress.step) / (10 + self.progress.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def _log(self, recent: list[DecodingLoss]) -> None:
        mean = _mean(recent)
        record = {
            "step": self.progress.step,
            "images": self.progress.images,
            "seconds": round(self.progress.seconds, 1),
            "learning_rate": learning_rate(self.config, self.progress.step, self.share_done()),
            **{name: round(float(getattr(mean, name)), 5) for name in DecodingLoss.__slots__},
        }
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps(record) + "\n")
        logger.info(" ".join(f"{key} {value:.5g}" for key, value in record.items()))

    def save(self) -> None:
        """Writes the checkpoint atomically: a kill leaves either the old one or the new one."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "affinity": self.affinity.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": {name: getattr(self.progress, name) for name in Progress.__slots__},
        }
        temporary = self.folder / (CHECKPOINT + ".new")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / CHECKPOINT)

    def resume(self) -> bool:
        """Continues from the folder's checkpoint, if there is one."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.affinity.load_state_dict(state["affinity"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        return True


def learning_rate(config: TrainConfig, step: int, share_done: float) -> float:
    """Linear warm-up, constant, linear decay to zero."""
    warmup = (step + 1) / max(1, config.warmup_steps)
    decay = (1 - share_done) / max(1e-9, config.decay_share)
    return config.learning_rate * min(1.0, warmup, max(0.0, decay))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    decayed = [parameter for name, parameter in model.named_parameters() if is_decayed(name, parameter)]
    ids = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _mean(losses: list[DecodingLoss]) -> DecodingLoss:
    names = DecodingLoss.__slots__
    return DecodingLoss(
        **{name: torch.stack([getattr(loss, name).detach() for loss in losses]).mean() for name in names}
    )
