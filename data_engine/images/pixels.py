"""Every way in which pixels are stored -> 8-bit RGB.

Alpha is composited on white. Of sixteen bits a channel the upper eight are kept. Numbers without a fixed range (32-bit
integers, floats) are scaled by the range that they use, see `_scaled`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageCms

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")


def to_rgb(image: Image.Image) -> np.ndarray:
    """A loaded image -> HxWx3 uint8. Raises what Pillow raises."""
    if image.mode.startswith("I;16"):
        return _sixteen_bits(image)
    if image.mode in ("I", "F"):
        return _three_channels(_scaled(np.asarray(image)))
    if image.mode == "LAB":
        image = _lab_to_rgb(image)
    elif image.mode in _WITH_ALPHA or "transparency" in image.info or getattr(image.palette, "mode", "") == "RGBA":
        _keep_upper_eight(image)
        image = _on_white(image.convert("RGBA"))
    elif image.mode != "RGB":
        image = image.convert("RGB")  # CMYK: Pillow has already undone Adobe's inversion
    return np.asarray(image)


def _keep_upper_eight(image: Image.Image) -> None:
    """Of the transparent colour of a PNG of sixteen bits: Pillow does it with the pixels, and not with this."""
    colour = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _on_white(rgba: Image.Image) -> Image.Image:
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _sixteen_bits(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]  # 12-bit TIFF comes in this mode too
    gray = (values >> (bits - 8 if 8 < bits <= 16 else 8)).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow inverts up to eight bits only
        gray = 255 - gray
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return _three_channels(gray)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Values without a fixed range -> uint8.

    Integers of 0..255 and 0..65535 are taken for 8 and 16 bits, floats of 0..1 for fractions and of 0..255 for 8 bits;
    anything else is stretched from its lowest to its highest value. NaN is black.
    """
    low, high = _range(values)
    shift = 0
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535 and values.dtype.kind != "f":
        shift = 8
    scale = 255.0 / (high - low) if high > low else 0.0
    shown = np.empty(values.shape, np.uint8)
    for row, line in enumerate(values):  # by lines, for such images are large enough already
        if shift:
            shown[row] = line >> shift
        else:
            bounded = np.clip(np.nan_to_num(line.astype(np.float64), nan=low, posinf=high, neginf=low), low, high)
            shown[row] = np.round((bounded - low) * scale)
    return shown


def _range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest finite value; (0, 0) if there is none."""
    if values.dtype.kind != "f":
        return float(values.min()), float(values.max())
    finite = np.isfinite(values)
    if not finite.any():
        return 0.0, 0.0
    return float(values.min(where=finite, initial=np.inf)), float(values.max(where=finite, initial=-np.inf))


def _three_channels(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[:, :, None], 3, axis=2)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None  # it is None only when working in place
    return converted
