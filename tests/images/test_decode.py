"""Every way to store pixels becomes the RGB picture that a viewer shows."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from encoded import encode, picture
from PIL import Image, ImageCms

from data_engine.images.decode import decode, is_plain_jpeg
from data_engine.images.settings import InputSettings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest resets the filters that decode sets

SETTINGS = InputSettings()
RGB = picture()
GRAY = RGB[:, :, 0].copy()


def decoded(image: np.ndarray | Image.Image, format: str = "PNG", **options: object) -> np.ndarray:
    return decode(encode(image, format, **options), SETTINGS)


def gray3(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_lossless_formats_are_exact(format: str, options: dict[str, object]) -> None:
    assert np.array_equal(decoded(RGB, format, **options), RGB)


def test_jpeg_and_gif() -> None:
    smooth = np.zeros((32, 32, 3), np.uint8) + np.arange(0, 256, 8, dtype=np.uint8)[None, :, None]
    for format, options in (("JPEG", {"quality": 95}), ("JPEG", {"quality": 95, "progressive": True}), ("GIF", {})):
        assert np.abs(decoded(smooth, format, **options).astype(int) - smooth).max() <= 8


def test_gray_and_bilevel() -> None:
    assert np.array_equal(decoded(GRAY), gray3(GRAY))
    assert np.array_equal(decoded(Image.fromarray(GRAY > 128)), gray3(np.where(GRAY > 128, 255, 0).astype(np.uint8)))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_the_upper_eight(format: str) -> None:
    """Pillow's own conversion would clip: 64/255 of full scale would be white already."""
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(decoded(Image.fromarray(values), format), gray3((values >> 8).astype(np.uint8)))


def tiff(width: int, height: int, data: bytes, bits: int, photometric: int = 1) -> bytes:
    """A gray TIFF with tags of our own: little-endian, uncompressed, one strip."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height, 279: len(data)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def test_sixteen_bit_tiff_where_white_is_zero() -> None:
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    shown = decode(tiff(16, 16, values.tobytes(), 16, photometric=0), SETTINGS)
    assert np.array_equal(shown, gray3(255 - (values >> 8).astype(np.uint8)))


def test_twelve_bit_tiff() -> None:
    shown = decode(tiff(4, 1, bytes.fromhex("000fff800100"), 12), SETTINGS)  # 0, 4095, 2048, 256
    assert shown[0, :, 0].tolist() == [0, 255, 128, 16]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 256, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),
        (np.array([[0, 1 << 30, (1 << 31) - 1]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.4, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0.5, np.inf]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, np.nan, np.nan]], np.float32), [0, 0, 0]),
        (np.array([[7.5, 7.5, 7.5]], np.float32), [8, 8, 8]),
        (np.array([[-3.0, -3.0, -3.0]], np.float32), [0, 0, 0]),
    ],
)
def test_numbers_without_a_fixed_range(values: np.ndarray, shown: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(Image.fromarray(values), "TIFF")[0, :, 0].tolist() == shown


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    a = alpha[:, :, None].astype(float) / 255
    return rgb * a + 255 * (1 - a)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_on_white(format: str) -> None:
    rgb = np.full((2, 6, 3), (200, 30, 90), np.uint8)
    alpha = np.array([[0, 1, 64, 128, 254, 255]] * 2, np.uint8)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    shown = decoded(Image.fromarray(np.dstack([rgb, alpha])), format, **options)
    assert np.abs(shown - on_white(rgb, alpha)).max() <= 1
    assert shown[0, 0].tolist() == [255, 255, 255]  # the hidden colour stays hidden
    assert shown[0, 5].tolist() == [200, 30, 90]


def test_gray_with_alpha() -> None:
    alpha = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (16, 1))
    shown = decoded(Image.fromarray(np.dstack([GRAY, alpha])))
    assert np.abs(shown - on_white(gray3(GRAY), alpha)).max() <= 1


def test_palettes() -> None:
    image = Image.fromarray((GRAY % 4).astype(np.uint8), "L").convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    assert np.array_equal(decoded(image), colours[GRAY % 4])
    transparent = colours.copy()
    transparent[2] = 255
    assert np.array_equal(decoded(image, transparency=2), transparent[GRAY % 4])
    assert np.array_equal(decoded(image, "GIF", transparency=2), transparent[GRAY % 4])
    half = decoded(image, transparency=bytes([255, 128, 255, 255]))
    assert np.abs(half[GRAY % 4 == 1].astype(int) - [127, 255, 127]).max() <= 1


def test_one_transparent_colour() -> None:
    gray = np.array([[0, 50, 255]], np.uint8)
    assert decoded(Image.fromarray(gray), transparency=50)[0, :, 0].tolist() == [0, 255, 255]
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    assert decoded(rgb, transparency=(1, 2, 3)).tolist() == [[[255, 255, 255], [4, 5, 6]]]
    deep = np.array([[0, 0x1234, 0x1235]], np.uint16)
    data = encode(Image.fromarray(deep))
    chunk = b"tRNS" + (0x1234).to_bytes(2, "big")
    at = data.index(b"IDAT") - 4
    data = data[:at] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:]
    assert decode(data, SETTINGS)[0, :, 0].tolist() == [0, 255, 0x12]


def test_a_transparent_colour_of_sixteen_bits() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    pixels = np.array(
        [[0x1234, 0x5678, 0x9ABC], [0x3434, 0x7878, 0xBCBC]], ">u2"
    )  # the second has the first's lower bytes
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data += (
        chunk(b"tRNS", pixels[0].tobytes())
        + chunk(b"IDAT", zlib.compress(b"\0" + pixels.tobytes()))
        + chunk(b"IEND", b"")
    )
    assert decode(data, SETTINGS).tolist() == [[[255, 255, 255], [0x34, 0x78, 0xBC]]]


def test_cmyk() -> None:
    inks = np.zeros((16, 64, 4), np.uint8)
    inks[:, 16:32, 0] = 255  # cyan
    inks[:, 32:48, 3] = 255  # black
    inks[:, 48:] = (0, 255, 255, 0)  # red
    expected = [(255, 255, 255), (0, 255, 255), (0, 0, 0), (255, 0, 0)]
    for format, options in (("JPEG", {"quality": 100}), ("TIFF", {})):  # JPEG: stored inverted, as Adobe does
        shown = decoded(Image.fromarray(inks, "CMYK"), format, **options).astype(int)
        for block, colour in enumerate(expected):
            assert np.abs(shown[:, 16 * block + 4 : 16 * block + 12] - colour).max() <= 6, (format, block)


def test_lab() -> None:
    rgb = Image.new("RGB", (8, 8), (200, 60, 30))
    lab = ImageCms.profileToProfile(
        rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert np.abs(decoded(lab, "TIFF").astype(int) - (200, 60, 30)).max() <= 4


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert decode(data, SETTINGS)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(format: str, orientation: int) -> None:
    upright = np.kron(np.array([[10, 90, 170], [210, 130, 50]], np.uint8), np.ones((16, 16), np.uint8))
    undo = {  # what has to be stored to be shown upright, in numpy's words
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    data = encode(stored.convert("RGB"), format, exif=exif.tobytes() if format == "WEBP" else exif, **options)
    assert np.abs(decode(data, SETTINGS).astype(int) - gray3(upright)).max() <= 3
    if format != "TIFF":
        assert decode(data, InputSettings(apply_orientation=False)).shape == (stored.height, stored.width, 3)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_do_not_exist(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(decoded(RGB, "PNG", exif=exif), RGB)


def test_broken_exif_does_not_cost_the_picture() -> None:
    assert decoded(RGB, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff").shape == RGB.shape


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (20, 20000)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    assert decoded(np.zeros((*shape, 3), np.uint8)).shape == (*shape, 3)


def test_plain_jpegs_are_those_that_every_reader_shows_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's limit is not ours
    turned = Image.Exif()
    turned[0x0112] = 6
    plain = encode(RGB, "JPEG")
    assert is_plain_jpeg(plain)
    two = Image.fromarray(RGB)
    for other in (
        encode(RGB),
        encode(GRAY, "JPEG"),
        encode(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
        encode(RGB, "JPEG", exif=turned),
        encode(two, "MPO", save_all=True, append_images=[two]),
        plain[:20],
        b"",
        b"\xff\xd8\xff",
    ):
        assert not is_plain_jpeg(other)
