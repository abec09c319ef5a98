"""A device beside the CPU where there is no GPU: its tensors compute on the CPU and say that they are elsewhere.

What a GPU refuses is refused: arguments of both sides in one operation, numpy on the device's side, a random generator
of the other side. It calls itself "meta", the one device besides the CPU's that every build of torch can name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"
aten = torch.ops.aten
_BETWEEN = (aten._to_copy.default, aten.copy_.default)  # may have one argument on each side
_INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class _Random(torch.Generator):
    """Remembers which device it was made for."""

    elsewhere: bool

    def __new__(cls, device: Any = "cpu") -> _Random:
        made = super().__new__(cls, "cpu")
        made.elsewhere = _is_elsewhere(device)
        return made


class _Elsewhere(Tensor):
    here: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> _Elsewhere:
        shape = here.shape, here.stride(), here.storage_offset()
        made = Tensor._make_wrapper_subclass(cls, *shape, dtype=here.dtype, device=NAME)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        return _run(function, args, named or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        return _run(function, args, named or {})


class _Calls(TorchFunctionMode):
    """What an operation no longer knows: whose its generator is, and where `torch.tensor` puts what it makes."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        named = named or {}
        if function in (torch.tensor, torch.as_tensor) and "device" in named:
            return function(*args, **{**named, "device": "cpu"}).to(named["device"])
        if function is Tensor.tolist:
            return function(_here(args[0]))
        if random := named.get("generator"):
            among = any(isinstance(leaf, _Elsewhere) for leaf in tree_leaves((args, named)))
            if random.elsewhere != (_is_elsewhere(named["device"]) if "device" in named else among):
                raise RuntimeError(f"{function}: its generator is for the other device")
        return function(*args, **named)


def _run(function: Any, args: Any, named: dict[str, Any]) -> Any:
    with _Operations():  # without gradients, composed operations come whole
        parts = function.decompose(*args, **named)
    if parts is not NotImplemented:
        return parts
    if function is aten._fused_sdp_choice.default:
        return 0  # plain products
    tensors = [leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor)]
    _check(function, args, tensors)
    elsewhere = any(isinstance(tensor, _Elsewhere) for tensor in tensors)
    if named.get("device") is not None:
        elsewhere = _is_elsewhere(named["device"])
        named = {**named, "device": torch.device("cpu")}
    plain_args, plain_named = tree_map(_here, (args, named))
    given = {id(_here(tensor)): tensor for tensor in tensors}

    def placed(value: Any) -> Any:
        if id(value) in given:
            return given[id(value)]
        return _Elsewhere(value) if elsewhere and isinstance(value, Tensor) else value

    return tree_map(placed, function(*plain_args, **plain_named))


def _check(function: Any, args: Any, tensors: list[Tensor]) -> None:
    if function in _BETWEEN:
        return
    if function in _INDEXING:  # indices may be on the CPU
        if any(isinstance(index, _Elsewhere) for index in args[1]) and not isinstance(args[0], _Elsewhere):
            raise RuntimeError(f"{function}: indices of the device into a tensor of the CPU")
        tensors = [args[0], *args[2:3]]
    if len({isinstance(t, _Elsewhere) for t in tensors if isinstance(t, _Elsewhere) or t.dim()}) > 1:
        raise RuntimeError(f"{function}: expected all tensors to be on the same device")


def _here(value: Any) -> Any:
    return value.here if isinstance(value, _Elsewhere) else value


def _is_elsewhere(device: Any) -> bool:
    return torch.device(device).type == NAME


def _without_gradients(mode: Any) -> None:
    mode.before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)


def _as_before(mode: Any, *_: Any) -> None:
    torch.set_grad_enabled(mode.before)


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", _Random)
        # Wrapped tensors need version counters; what a module holds cannot be exchanged inside of one.
        patch.setattr(torch.inference_mode, "__enter__", _without_gradients)
        patch.setattr(torch.inference_mode, "__exit__", _as_before)
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        with _Calls(), _Operations():
            yield torch.device(NAME)


def every_device() -> list[Any]:
    """Parameters of a test that runs on this device and, where there is one, on a GPU."""
    gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    return ["pretended", pytest.param("cuda", marks=gpu)]


@contextmanager
def device_of(name: str) -> Iterator[torch.device]:
    """One of `every_device`."""
    if name == "cuda":
        yield torch.device("cuda", 0)
        return
    with pretended_device() as device:
        yield device
