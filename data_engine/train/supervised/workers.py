"""What several workers of one training share, by torch.distributed: gradients, figures and states."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

# The others wait while worker 0 validates, for as long as that takes. Ray notices workers that die.
_LONGEST_WAIT = timedelta(days=7)


class Alone:
    """One worker."""

    rank, world = 0, 1

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        pass

    def mean(self, values: Tensor) -> Tensor:
        return values

    def any(self, flag: bool) -> bool:
        return flag

    def gather(self, value: T) -> list[T]:
        return [value]


class Together:
    """A worker of a process group that is set up already, as Ray Train does."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(timeout=_LONGEST_WAIT)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """All gradients in one message; a parameter that a worker did not use counts as zero there."""
        known = list(parameters)
        for parameter in known:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in known if parameter.grad is not None])
        dist.all_reduce(flat, group=self._group)
        flat /= self.world
        for parameter, part in zip(known, flat.split([parameter.numel() for parameter in known]), strict=True):
            parameter.grad = part.view_as(parameter)

    def mean(self, values: Tensor) -> Tensor:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = values.to(device)
        dist.all_reduce(total, group=self._group)
        return (total / self.world).to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether one of the workers says so: the same answer for all."""
        return bool(self.mean(torch.tensor(float(flag))) > 0)

    def gather(self, value: T) -> list[T]:
        """Every worker's value, by rank."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._group)
        return found


Workers = Alone | Together
