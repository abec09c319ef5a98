"""scipy and scikit-image, which only measuring needs: the module, or what to install."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from data_engine.errors import UsageError

_PACKAGES = {"scipy": "scipy", "skimage": "scikit-image"}


def optional(module: str) -> Any:
    """ "scipy.ndimage" -> the module. Raises UsageError where its package is not installed."""
    try:
        return import_module(module)
    except ImportError:
        package = _PACKAGES[module.partition(".")[0]]
        raise UsageError(f"measuring needs {package}: pip install 'data-engine[train]'") from None
