"""Whether this process decodes and masks anything at all: asked before an image is suspected of ending it."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
from PIL import Image

from data_engine.images.settings import InputSettings
from data_engine.images.shard import EncodedImage
from data_engine.masks.generator import MaskGenerator
from data_engine.masks.prompting import NonFiniteOutput
from data_engine.pipeline.rows import decode_image

_SIDE = 256


def try_out(generator: MaskGenerator) -> None:
    """Masks a picture of no meaning with one prompt. If that ends the process, it is nobody's fault but the set-up's.

    What it raises otherwise is left to the images that follow, of which enough in a row end the job.
    """
    ramp = np.linspace(0, 255, _SIDE, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp, ramp[:, None], np.uint8(128)), axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    small = MaskGenerator(generator.segmenter, points_per_side=1)
    decoded = decode_image(EncodedImage(0, "trial", "", buffer.getvalue()), small, InputSettings())
    if decoded.prepared is not None:
        with suppress(RuntimeError, NonFiniteOutput):
            small.run(decoded.prepared)
