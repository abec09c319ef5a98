"""The model on one image, and whose fault it is when it fails: the image's, the device's or the set-up's."""

from __future__ import annotations

import logging
from collections.abc import Callable

from data_engine.config import JobConfig
from data_engine.dataset.rejects import keeps_rejects
from data_engine.errors import DeviceLost, ModelFailure
from data_engine.masks.generator import Interrupted, MaskGenerator
from data_engine.masks.image_masks import ImageMasks
from data_engine.masks.prompting import NonFiniteOutput
from data_engine.pipeline.rows import DecodedImage, Failure
from data_engine.sam.device_errors import is_out_of_memory, loses_device

log = logging.getLogger(__name__)

_TRACEBACKS = 10  # that are logged


class ImageMasker:
    """Runs the model on image after image, and counts how often it failed."""

    def __init__(self, config: JobConfig, generator: MaskGenerator, stopping: Callable[[], bool]) -> None:
        self._config = config
        self._generator = generator
        self._stopping = stopping
        self._floors = config.reject_floors
        self._failures = 0  # since it last worked
        self._tracebacks = 0

    def masks_of(self, image: DecodedImage) -> tuple[ImageMasks | None, Failure | None]:
        """Its masks, or why this image has none.

        Raises Interrupted once `stopping`, DeviceLost, and ModelFailure when the model fails on everything.
        """
        assert image.prepared is not None
        try:
            floors = self._floors if keeps_rejects(image.image_id, self._config.output.keep_rejects) else None
            masks = self._generator.run(image.prepared, self._stopping, floors)
        except Interrupted:
            raise
        except NonFiniteOutput as error:
            failure = Failure("non_finite", str(error))
        except Exception as error:  # one image never fails a shard
            device = self._generator.segmenter.device
            if loses_device(error, device):  # every further image would fail for no fault of its own
                cause = (str(error).splitlines() or [""])[0]
                raise DeviceLost(
                    f"{device} was lost at image {image.image_id} ({type(error).__name__}: {cause}); what was masked "
                    "before is committed. Run the same command again; if it comes back, the GPU needs a reset"
                ) from error
            if is_out_of_memory(error):
                failure = Failure("out_of_memory", f"one prompt at a time does not fit: {error}")
            else:
                failure = Failure("internal_error", f"{type(error).__name__}: {error}")
                self._log_failure(image.image_id)
        else:
            self._failures = 0
            return masks, None
        self._failures += 1
        if self._failures >= self._config.run.give_up_after:
            # Photographs that a model cannot mask are rare and far between: this is the set-up, or memory of the device
            # that others have taken since.
            raise ModelFailure(
                f"the model failed on {self._failures} images in a row, last on {image.image_id} "
                f"({failure.type}: {failure.message}): the set-up or the device is at fault, so the job stops here. "
                "If it is the images, raise run.give_up_after"
            )
        return None, failure

    def _log_failure(self, image_id: str) -> None:
        """Called while the error is handled. One image in a thousand would be a flood; every row has its message."""
        self._tracebacks += 1
        if self._tracebacks <= _TRACEBACKS:
            rest = "; further ones are told by their rows alone" if self._tracebacks == _TRACEBACKS else ""
            log.warning("%s: the model failed%s", image_id, rest, exc_info=True)
