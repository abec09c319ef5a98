"""Gradients of one optimiser step on this worker: embeddings, then image by image its rounds of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_engine.sam.model import Sam
from data_engine.train.losses import DecodingLoss
from data_engine.train.supervised.embeddings import Kept, key_of, rounded
from data_engine.train.supervised.encoder import trains
from data_engine.train.supervised.interaction import Interaction
from data_engine.train.supervised.settings import TrainingSettings
from data_engine.train.supervised.views import Example

FIGURES = ("loss", "focal", "dice", "iou_error", "best_iou", "first_iou", "last_iou")


@dataclass(slots=True)
class GradientStep:
    """Computes gradients in a model. `kept` embeddings are used where the encoder is frozen."""

    model: Sam
    settings: TrainingSettings
    device: torch.device
    kept: Kept | None
    weights: str  # names the encoder's weights in the keys of embeddings

    def run(self, examples: Sequence[Example]) -> Tensor:
        """Adds the gradients of the mean loss of the examples. Returns the means of FIGURES, float64 on the CPU."""
        self.model.train()
        self.model.image_encoder.train(trains(self.model.image_encoder))  # a frozen one always gives the same
        size = self.settings.train.images_per_batch
        figures = []
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            embeddings = self._embed(batch)
            # Each round's backward pass ends at the embedding, so that one round's activations are in memory.
            leaf = embeddings.detach().requires_grad_(embeddings.requires_grad)
            for example, embedding in zip(batch, leaf, strict=True):
                figures.append(self._decode(example, embedding, share=1 / len(examples)))
            if embeddings.requires_grad:
                embeddings.backward(leaf.grad)
        return torch.stack(figures).mean(0)

    def _decode(self, example: Example, embedding: Tensor, share: float) -> Tensor:
        """embedding CxGxG."""
        settings = self.settings
        targets = example.targets.to(self.device)
        cells = embedding.flatten(1).mT
        interaction = Interaction(
            self.model, cells, targets, settings.prompts, settings.loss, self._autocast(), example.seed
        )
        losses = list(self._backward(interaction, share))
        totals = torch.stack([torch.stack([x.total, x.focal, x.dice, x.iou_error, x.best_iou]) for x in losses])
        first, last = totals[0, -1], totals[-1, -1]
        return torch.cat([totals.mean(0), first[None], last[None]]).double().cpu()

    def _backward(self, interaction: Interaction, share: float) -> Iterator[DecodingLoss]:
        for loss in interaction.losses():
            (loss.total * (share / interaction.rounds)).backward()
            loss.total = loss.total.detach()
            yield loss

    def _embed(self, batch: Sequence[Example]) -> Tensor:
        """BxCxGxG float32; with a graph if the encoder is trained."""
        if trains(self.model.image_encoder):
            return self._encode(batch)
        if self.kept is None:
            with torch.no_grad():
                return self._encode(batch)
        return torch.stack([self._kept(self.kept, example) for example in batch])

    def _kept(self, kept: Kept, example: Example) -> Tensor:
        key = key_of(example, self.weights)
        found = kept.get(key)
        if found is not None:
            return torch.from_numpy(found).to(self.device).float()
        with torch.no_grad():  # alone: in a batch its last bits would depend on the others
            embedding = rounded(self._encode([example])[0])
        kept.put(key, embedding.to(torch.float16).cpu().numpy())
        return embedding

    def _encode(self, batch: Sequence[Example]) -> Tensor:
        pixels = torch.stack([example.pixels for example in batch]).to(self.device)
        images = self.model.normalise(pixels, [example.size for example in batch])
        with self._autocast():
            return self.model.image_encoder(images).float()

    def _autocast(self) -> torch.autocast:
        enabled = self.settings.train.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)
