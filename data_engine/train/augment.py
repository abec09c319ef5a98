"""What a camera, a lens and a file format do to a picture. Geometry is not touched, so masks stay exact."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter


def photographed(rng: np.random.Generator, image: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """HxWx3 uint8 -> the same scene, taken by a random camera. `strength` scales the defects, not the colours."""
    image = _exposure(rng, image)
    if rng.random() < 0.5 * strength:
        radius = abs(rng.normal(0, 0.7))
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
    if rng.random() < 0.5 * strength:
        image = _sensor_noise(rng, image)
    if rng.random() < 0.5 * strength:
        image = _jpeg(image, int(rng.integers(35, 96)))
    return image


def _exposure(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Gamma, contrast, brightness, saturation, white balance; now and then black and white."""
    x = image.astype(np.float32) / 255
    x = x ** np.exp(rng.normal(0, 0.25))
    grey = x @ np.array([0.3, 0.59, 0.11], np.float32)
    saturation = 0.0 if rng.random() < 0.06 else np.exp(rng.normal(0, 0.3))
    x = grey[..., None] + saturation * (x - grey[..., None])
    mean = float(grey.mean())
    x = (x - mean) * np.exp(rng.normal(0, 0.15)) + mean + rng.normal(0, 0.06)
    x = x * np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
    return (x * 255 + 0.5).clip(0, 255).astype(np.uint8)


def _sensor_noise(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """More noise where it is darker; half of it shared by the channels, as a raw converter leaves it."""
    sigma = abs(rng.normal(0, 6))
    noise = rng.standard_normal((*image.shape[:2], 3), dtype=np.float32)
    noise = 0.7 * noise + 0.7 * noise[..., :1]
    level = 1.3 - image.astype(np.float32) / 255
    return (image + sigma * level * noise + 0.5).clip(0, 255).astype(np.uint8)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))
