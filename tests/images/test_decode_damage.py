"""Damaged, hostile and foreign bytes: each is an ImageError of the right type, at no cost in time or memory."""

import pickle
import random
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from encoded import encode, picture, tried
from PIL import Image, ImageFile

from data_engine.images.decode import decode, peek_size
from data_engine.images.pillow_limit import PillowLimit
from data_engine.images.settings import InputSettings
from data_engine.images.shard import ImageError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest resets the filters that decode sets

SETTINGS = InputSettings()
RGB = picture()


def error_of(data: bytes, settings: InputSettings = SETTINGS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, settings)
    return caught.value


@pytest.mark.parametrize(
    ("data", "type"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "not_an_image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_an_image"),
        (b"\0" * 100, "not_an_image"),
        (b"\xff\xd8\xff", "corrupt"),
        (b"\xff\xd8\0\0", "corrupt"),
        (b"\x89PNG\n\x1a\n", "corrupt"),
        (b"BM", "corrupt"),
        (b"GIF89a", "corrupt"),
        (b"II*\0", "corrupt"),
        (b"RIFF\x04\0\0\0WEBP", "corrupt"),
        (b"RIFF\x04\0\0\0WAVE", "not_an_image"),
        (b"\0\0\0\x1cftypheic" + bytes(20), "unsupported_format"),
        (b"8BPS" + bytes(20), "unsupported_format"),
        (b"P6\n1 1\n255\n000", "unsupported_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
    ],
)
def test_what_is_no_image(data: bytes, type: str) -> None:
    assert error_of(data).type == type
    assert peek_size(data) is None


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_readable_beginning_is_never_taken_for_the_picture(format: str, options: dict[str, object]) -> None:
    data = encode(picture(40, 30), format, **options)
    whole = decode(data, SETTINGS)
    failed = 0
    for length in range(0, len(data), 7):
        cut = tried(data[:length], SETTINGS)
        if isinstance(cut, ImageError):
            assert cut.type in ("empty", "not_an_image", "truncated", "corrupt")
            failed += 1
        else:
            assert np.array_equal(cut, whole)  # only an end mark is missing
    assert failed >= len(range(0, len(data), 7)) - 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_random_damage_is_an_image_error_or_a_picture(format: str) -> None:
    data = encode(picture(), format)
    rng = random.Random(0)
    for _ in range(150):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        begun = time.perf_counter()
        shown = tried(bytes(broken), SETTINGS)
        assert shown.message if isinstance(shown, ImageError) else shown.dtype == np.uint8
        assert time.perf_counter() - begun < 5


@pytest.mark.parametrize(
    "raised",
    [
        OSError("x"),
        SyntaxError("x"),
        ValueError("x"),
        struct.error("x"),
        KeyError("x"),
        TypeError(),
        NotImplementedError(),
        EOFError(),
        MemoryError(),
        RecursionError(),
        OverflowError("x"),
        ZeroDivisionError(),
        zlib.error("x"),
        Image.DecompressionBombError("x"),
        Image.DecompressionBombWarning("x"),
        Image.UnidentifiedImageError("x"),
    ],
)
def test_whatever_a_decoder_raises_is_an_image_error(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: object) -> None:
        raise raised

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    error = error_of(encode(RGB, "BMP"))
    assert error.message
    assert error.type in ("corrupt", "truncated", "out_of_memory", "too_many_pixels")


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def webp_header(width: int, height: int) -> bytes:
    body = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"WEBPVP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


@pytest.mark.parametrize(
    "data",
    [
        png_header(1 << 30, 1 << 30),
        png_header(20_000, 20_000),
        webp_header(16_384, 16_384),
        b"BM" + struct.pack("<IHHIIiiHH", 100, 0, 0, 54, 40, 60_000, 60_000, 1, 24) + bytes(60),
        b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b"," + bytes(20),
    ],
    ids=["png", "png-plausible", "webp", "bmp", "gif"],
)
def test_bombs_are_refused_before_anything_is_allocated(data: bytes) -> None:
    tracemalloc.start()
    begun = time.perf_counter()
    error = error_of(data)
    taken = time.perf_counter() - begun
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.type == "too_many_pixels"
    assert taken < 0.5
    assert peak < 1 << 20


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_the_pixel_limit_is_the_setting_and_not_pillows(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(RGB, format)
    shown = decode(data, SETTINGS)
    assert error_of(data, InputSettings(max_pixels=RGB.shape[0] * RGB.shape[1] - 1)).type == "too_many_pixels"
    assert decode(data, InputSettings(max_pixels=RGB.shape[0] * RGB.shape[1])).shape == RGB.shape
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert np.array_equal(decode(data, SETTINGS), shown)
    assert Image.MAX_IMAGE_PIXELS == 10  # for whatever else opens images in this process


def test_pillows_limit_is_back_when_the_last_large_image_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    limit = PillowLimit()
    with limit.lifted_for((2, 5)):
        assert Image.MAX_IMAGE_PIXELS == 10
    first, second = limit.lifted_for((2, 6)), limit.lifted_for((2, 6))
    first.__enter__()
    with second, limit.lifted_for((1, 1)):
        first.__exit__(None, None, None)
        assert Image.MAX_IMAGE_PIXELS is None
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(ZeroDivisionError), limit.lifted_for((2, 6)):
        raise ZeroDivisionError
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_peek_size(format: str) -> None:
    assert peek_size(encode(picture(37, 11), format)) == (37, 11)
    assert peek_size(encode(picture(37, 11), format)[:20]) is None


@pytest.mark.parametrize("data", [png_header(20_000, 20_000), webp_header(20_000, 20_000)], ids=["png", "webp"])
def test_peek_size_of_what_is_too_large(data: bytes) -> None:
    assert peek_size(data) == (20_000, 20_000)


def test_image_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(ImageError("corrupt", "why")))
    assert (error.type, str(error)) == ("corrupt", "why")
