"""Which weights decay: matrices and kernels, but not biases, norms, embeddings and positions."""

from __future__ import annotations

from torch import nn

_SPARED = ("pos_embed", "rel_pos", "embed", "_token")


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """name: of the parameter in its model."""
    return parameter.ndim >= 2 and not any(word in name for word in _SPARED)
