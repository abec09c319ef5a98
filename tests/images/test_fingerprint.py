"""The digest is SHA-256; the perceptual hash is imagehash's."""

import hashlib

import numpy as np
import pytest
from encoded import picture
from PIL import Image, ImageFilter

from data_engine.images.fingerprint import perceptual_hash, sha256

imagehash = pytest.importorskip("imagehash")


def pictures() -> list[np.ndarray]:
    smooth = [
        np.asarray(Image.fromarray(picture(90 + 13 * seed, 60 + 7 * seed, seed)).filter(ImageFilter.GaussianBlur(4)))
        for seed in range(40)
    ]
    ramp = np.zeros((64, 200, 3), np.uint8) + np.arange(200, dtype=np.uint8)[None, :, None]
    flat = [np.full((10, 10, 3), value, np.uint8) for value in (0, 1, 127, 255)]
    return [*smooth, ramp, *flat, picture(1, 1), picture(1, 300), picture(32, 32)]


def test_perceptual_hash_equals_imagehash() -> None:
    for rgb in pictures():
        assert perceptual_hash(rgb) == int(str(imagehash.phash(Image.fromarray(rgb))), 16)


def test_perceptual_hash_of_similar_pictures() -> None:
    rgb = pictures()[39]
    small = np.asarray(Image.fromarray(rgb).resize((rgb.shape[1] // 2, rgb.shape[0] // 2)))
    assert (perceptual_hash(rgb) ^ perceptual_hash(small)).bit_count() <= 6
    assert 0 <= perceptual_hash(rgb) < 1 << 64


def test_sha256() -> None:
    assert sha256(b"abc") == hashlib.sha256(b"abc").digest()
