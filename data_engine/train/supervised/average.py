"""The exponential moving average of the trained weights: what is validated and exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from data_engine.sam.model import Sam
from data_engine.train.supervised.optimizer import trained_parameters


class AverageWeights:
    def __init__(self, model: Sam, decay: float) -> None:
        self._model = model
        self._decay = decay
        self.weights = {name: parameter.detach().clone() for name, parameter in trained_parameters(model)}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step number `step`, from 0. Early on it follows closely, or it would remember the start."""
        decay = min(self._decay, (1 + step) / (10 + step))
        current: list[Tensor] = [parameter for _, parameter in trained_parameters(self._model)]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average weights inside of this."""
        before = {name: parameter.detach().clone() for name, parameter in trained_parameters(self._model)}
        self.put(self.weights)
        try:
            yield
        finally:
            self.put(before)

    @torch.no_grad()
    def put(self, weights: dict[str, Tensor]) -> None:
        """Copies weights by name into the model."""
        for name, parameter in trained_parameters(self._model):
            parameter.copy_(weights[name])
