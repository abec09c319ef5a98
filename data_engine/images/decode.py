"""Encoded bytes -> the RGB picture that a viewer shows.

Only six formats are ever handed to a decoder, each chosen by its first bytes and never by a file's name, and only
after the size in its header has passed the limit. Whatever a decoder raises becomes an ImageError.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from data_engine.images.pillow_limit import PillowLimit
from data_engine.images.pixels import to_rgb
from data_engine.images.settings import InputSettings
from data_engine.images.shard import ImageError

# What Pillow has to say about odd metadata is of no use in a job's log. Set once: filters are not safe among threads.
warnings.filterwarnings("ignore", module=r"PIL\..*")

# Opened directly rather than by Image.open, whose own pixel limit is global to the process.
_Opener = Callable[[BytesIO], Image.Image]
_FORMATS: tuple[tuple[str, tuple[bytes, ...], _Opener], ...] = (
    ("JPEG", (b"\xff\xd8\xff",), JpegImagePlugin.jpeg_factory),
    ("PNG", (b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    ("GIF", (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ("BMP", (b"BM",), BmpImagePlugin.BmpImageFile),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    ("WebP", (b"RIFF",), WebPImagePlugin.WebPImageFile),
)
_PILLOWS_LIMIT = PillowLimit()
_EMPTY_TEXTS = ("not identified by this driver", "SyntaxError")
_OTHER_FORMATS: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "HEIF or AVIF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"<svg", "SVG"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"DDS ", "DDS"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    *((0, b"P%d" % number, "Netpbm") for number in range(1, 7)),
)


def decode(data: bytes, settings: InputSettings) -> np.ndarray:
    """Encoded bytes -> HxWx3 uint8, of the first frame. Raises ImageError and nothing else."""
    try:
        with _open(data, settings.max_pixels) as image:
            with _PILLOWS_LIMIT.lifted_for(image.size):
                image.load()
            orientation = _orientation(image) if settings.apply_orientation else 1
            pixels = np.ascontiguousarray(_oriented(to_rgb(image), orientation))
        return pixels if pixels.flags.writeable else pixels.copy()
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("out_of_memory", "not enough memory to decode it; lower input.max_pixels") from None
    except Exception as error:  # decoders raise nearly everything on hostile bytes
        raise _explained(error) from error


def is_plain_jpeg(data: bytes) -> bool:
    """Whether every reader shows these bytes as `decode` does: a colour JPEG that EXIF does not turn. Never raises."""
    try:
        if _opener(data) is not JpegImagePlugin.jpeg_factory:
            return False
        with _open(data, max_pixels=1 << 62) as image:
            return image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(0x0112, 1) == 1
    except Exception:
        return False


def peek_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) as stored, from the header alone; None if it cannot be told. Never raises."""
    try:
        if _opener(data) is WebPImagePlugin.WebPImageFile:
            return _webp_size(data)
        with _open(data, max_pixels=1 << 62) as image:
            return image.size
    except Exception:
        return None


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The image with its header read and its size checked, no pixel decoded."""
    if not data:
        raise ImageError("empty", "0 bytes")
    opener = _opener(data)
    size = None
    if opener is WebPImagePlugin.WebPImageFile:  # it allocates the canvas while it opens
        length = 8 + int.from_bytes(data[4:8], "little")
        if length > len(data):
            raise ImageError("truncated", f"it ends too early: {len(data):,} of {length:,} bytes")
        size = _webp_size(data)
        if size is not None:
            _check_size(size, max_pixels)
    with _PILLOWS_LIMIT.lifted_for(size or (0, 0)):
        image = opener(BytesIO(data))
    _check_size(image.size, max_pixels)
    return image


def _opener(data: bytes) -> _Opener:
    for name, magic, opener in _FORMATS:
        if data.startswith(magic) and (name != "WebP" or data[8:12] == b"WEBP"):
            return opener
    for offset, magic_bytes, name in _OTHER_FORMATS:
        if data.startswith(magic_bytes, offset):
            raise ImageError("unsupported_format", f"{name} is not read; use JPEG, PNG, WebP, TIFF, BMP or GIF")
    if data.startswith(b"\xff\xd8") or data[1:4] == b"PNG":  # a text-mode transfer, or worse
        raise ImageError("corrupt", f"its signature is damaged: it begins with {data[:8]!r}")
    raise ImageError("not_an_image", f"no image format begins with {data[:16]!r}")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError("corrupt", f"its header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            "too_many_pixels",
            f"{width} x {height} = {width * height:,} pixels, above input.max_pixels = {max_pixels:,}",
        )


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """The canvas of a WebP file, from its first chunk."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where it is absent or unreadable."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # the picture is whole, only its metadata is not
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _oriented(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """The picture upright: how orientations 2 to 8 are undone, as the EXIF standard numbers them."""
    if orientation >= 5:  # rows and columns are swapped
        rgb = rgb.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return rgb


def _explained(error: Exception) -> ImageError:
    """The decoder's exception as an ImageError. Its text is the only thing that tells the cases apart."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    lower = text.lower()
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return ImageError("too_many_pixels", text)
    if (
        isinstance(error, EOFError)
        or "truncat" in lower
        or "unexpected end" in lower
        or "not enough image data" in lower
    ):
        return ImageError("truncated", f"it ends too early: {text}")
    if any(word in lower for word in ("unsupported", "not supported", "not available", "unknown compression")):
        return ImageError("unsupported_format", text)
    if isinstance(error, (SyntaxError, struct.error)):  # what openers raise
        return ImageError(
            "corrupt", "its header is damaged" if text in _EMPTY_TEXTS else f"its header is damaged: {text}"
        )
    return ImageError("corrupt", f"damaged: {text}")
