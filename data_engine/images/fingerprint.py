"""What identifies an image: its bytes exactly, its picture approximately."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

_HASH_SIZE = 8
_SAMPLED = 4 * _HASH_SIZE
# rows 0..7 of the DCT-II of 32 samples
_DCT = 2 * np.cos(np.pi / (2 * _SAMPLED) * np.outer(np.arange(_HASH_SIZE), 2 * np.arange(_SAMPLED) + 1))


def sha256(data: bytes) -> bytes:
    """The 32 bytes of the SHA-256 digest."""
    return hashlib.sha256(data).digest()


def perceptual_hash(rgb: np.ndarray) -> int:
    """HxWx3 uint8 -> the 64-bit DCT hash, as `imagehash.phash` gives it. Similar pictures differ in few bits."""
    small = Image.fromarray(rgb).convert("L").resize((_SAMPLED, _SAMPLED), Image.Resampling.LANCZOS)
    frequencies = _DCT @ np.asarray(small, dtype=np.float64) @ _DCT.T
    # Coefficients that are zero in exact arithmetic must not be told from zero by their rounding noise.
    frequencies = np.round(frequencies, 6)
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
