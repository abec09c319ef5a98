"""Real broken and odd files: what each becomes, and that none takes the process, a lot of time or memory with it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from encoded import tried

from data_engine.images.decode import decode, peek_size
from data_engine.images.settings import InputSettings
from data_engine.images.shard import ImageError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest resets the filters that decode sets

BAD = Path(__file__).parent.parent / "data" / "bad"
SETTINGS = InputSettings()

BECOMES: dict[str, str | tuple[int, int]] = {
    "jpeg-decoder/138d3b9e0d9fbf641b8135981e597c3a.jpg": "corrupt",
    "jpeg-decoder/7e7cdf7f4ee50b308531313bbf43e0c3.jpg": "corrupt",
    "jpeg-decoder/8e5e74dbf9b68a322fbb9512db837329.jpg": (193, 31237),
    "jpeg-decoder/90e46387f562ca8fa106b51dfcda1dc6.jpg": "corrupt",
    "jpeg-decoder/dc-predictor-overflow.jpg": (144, 144),
    "jpeg-decoder/max_size.jpg": "too_many_pixels",
    "jpeg-decoder/missing-sof.jpg": "truncated",
    "jpeg-decoder/missing-sos.jpg": "corrupt",
    "jpeg-decoder/null_height.jpg": "corrupt",
    "pillow/16bit.MM.deflate.tif": (64, 64),
    "pillow/apng__mode_16bit.png": (128, 64),
    "pillow/apng__syntax_num_frames_invalid.png": (128, 64),
    "pillow/bmp__b__badheadersize.bmp": "unsupported_format",
    "pillow/bmp__b__badwidth.bmp": "too_many_pixels",
    "pillow/bmp__q__rgba16-4444.bmp": "unsupported_format",
    "pillow/broken.png": "corrupt",
    "pillow/crash-1152ec2d1a1a71395b6f2ce6721c38924d025bf3.tif": "corrupt",
    "pillow/decompression_bomb_extents.gif": (100, 100),
    "pillow/hopper_gray_4bpp.tif": (128, 128),
    "pillow/no_palette_after_rgb.gif": (1, 1),
    "pillow/tga__common__200x32_la.png": (200, 32),
    "pillow/tiff_16bit_RGB.tiff": (100, 40),
    "pillow/transparent.gif": (200, 150),
    "pillow/transparent.webp": (200, 150),
    "pillow/truncated_exif_dpi.jpg": (480, 640),
    "pillow/truncated_jpeg.jpg": "truncated",
    "pngsuite/basi3p02.png": (32, 32),
    "pngsuite/basn0g01.png": (32, 32),
    "pngsuite/basn0g16.png": (32, 32),
    "pngsuite/basn4a16.png": (32, 32),
    "pngsuite/basn6a16.png": (32, 32),
    "pngsuite/oi9n2c16.png": (32, 32),
    "pngsuite/s40n3p04.png": (40, 40),
    "pngsuite/tbbn0g04.png": (32, 32),
    "pngsuite/tbbn2c16.png": (32, 32),
    "pngsuite/tm3n3p02.png": (32, 32),
    "pngsuite/tp1n3p08.png": (32, 32),
    "pngsuite/xc9n2c08.png": "corrupt",
    "pngsuite/xcrn0g04.png": "corrupt",
    "pngsuite/xcsn0g01.png": (32, 32),  # a wrong checksum of whole pixel data
    "pngsuite/xdtn0g01.png": "corrupt",
    "pngsuite/xhdn0g08.png": "corrupt",
    "pngsuite/xs1n0g01.png": "corrupt",
}
FILES = sorted(str(path.relative_to(BAD)) for path in BAD.glob("*/*") if path.parent.name != "orientation")


def test_every_file_is_listed() -> None:
    assert sorted(BECOMES) == FILES


@pytest.mark.parametrize("name", FILES)
def test_becomes(name: str) -> None:
    data = (BAD / name).read_bytes()
    expected = BECOMES[name]
    pixels = tried(data, SETTINGS)
    if isinstance(pixels, ImageError):
        assert pixels.type == expected
        assert pixels.message
        assert "\n" not in pixels.message
    else:
        assert (pixels.shape[1], pixels.shape[0]) == expected
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable
        assert peek_size(data) == expected


def test_no_warning_reaches_the_terminal() -> None:
    """In a process where every warning would be an error. (libtiff, in C, writes of damaged TIFFs to stderr.)"""
    program = (
        "import sys; from pathlib import Path; from data_engine.images.decode import decode, peek_size\n"
        "from data_engine.images.settings import InputSettings; from data_engine.images.shard import ImageError\n"
        "for path in sorted(Path(sys.argv[1]).glob('*/*')):\n"
        "    data = path.read_bytes()\n"
        "    peek_size(data)\n"
        "    try: decode(data, InputSettings())\n"
        "    except ImageError: pass\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(BAD)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Warning" not in done.stderr
    assert "PIL" not in done.stderr


def test_orientations_all_show_the_same_picture() -> None:
    pictures = {}
    for orientation in range(9):
        data = (BAD / "orientation" / f"landscape_{orientation}.jpg").read_bytes()
        pictures[orientation] = decode(data, SETTINGS).astype(int)
        stored = decode(data, InputSettings(apply_orientation=False))
        assert stored.shape == ((180, 120, 3) if orientation >= 5 else (120, 180, 3))
        assert peek_size(data) == (stored.shape[1], stored.shape[0])
    for orientation, shown in pictures.items():
        assert shown.shape == (120, 180, 3)
        differing = np.abs(shown - pictures[1]).max(axis=2) > 60
        assert differing.mean() < 0.03, orientation  # a number is written in the middle of each
