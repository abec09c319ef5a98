"""The one interface between a promptable model and everything above it, and SAM behind it.

`load_segmenter("sam_vit_h")` is the way in. What is above (mask generation, training, serving) knows `Segmenter`,
`Embeddings` and `Decoded` only, so another promptable model is one more class with these methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from data_engine.errors import ModelFailure, UsageError
from data_engine.sam.checkpoints import LoadedCheckpoint, load_checkpoint
from data_engine.sam.compiled import compile_networks
from data_engine.sam.cpu_memory import keep_freed_memory
from data_engine.sam.model import Sam, Uninitialised
from data_engine.sam.resize import resize_image

Precision = Literal["reference", "fast"]


@dataclass(frozen=True, slots=True)
class View:
    """An image (or a crop of one) in the model's input frame."""

    pixels: Tensor  # 3xSxS uint8 on the host; the image in the top-left corner, zeros elsewhere
    input_shape: tuple[int, int]  # (height, width) of the image inside the frame
    shape: tuple[int, int]  # (height, width) of the image before resizing


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Image embeddings of V views, on the segmenter's device."""

    features: Tensor  # VxCxGxG float32

    def finite(self) -> bool:
        return bool(torch.isfinite(self.features).all())


@dataclass(slots=True)
class Decoded:
    """The answer to P prompts: scores at once, masks only where asked for."""

    iou: Tensor  # PxM float32 predicted IoU
    _logits: Callable[[Tensor], Tensor]

    def logits(self, wanted: Tensor) -> Tensor:
        """Mask logits of the wanted (prompt, mask) pairs: wanted PxM bool -> Kx(4G)x(4G) float32, row-major order."""
        return self._logits(wanted)


class Segmenter(Protocol):
    """A promptable segmentation model."""

    image_size: int  # side S of the input frame in pixels
    logits_size: int  # side of the low-resolution mask logits
    mask_threshold: float  # a mask is where its logits exceed this
    device: torch.device

    @property
    def prompts_per_chunk(self) -> int:
        """How many prompts run together best on this device. Results do not depend on it."""
        ...

    @property
    def prompt_threads(self) -> int:
        """How many threads may ask for prompts side by side, and best do so on this device."""
        ...

    @property
    def views_per_batch(self) -> int:
        """How many views are encoded together best on this device."""
        ...

    def prepare(self, image: np.ndarray) -> View:
        """HxWx3 uint8 RGB -> the view to encode. Host work, safe to run in threads."""
        ...

    def encode(self, views: list[View]) -> Embeddings: ...

    def decode(
        self,
        embeddings: Embeddings,
        view: int,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
    ) -> Decoded:
        """Answers P prompts on one view.

        Coordinates are pixels of the input frame: points PxKx2 with labels PxK, boxes Px4, masks Px1x(4G)x(4G).
        `multimask` gives M = 3 masks a prompt (whole, part, subpart), otherwise M = 1.
        """
        ...


class SamSegmenter:
    """SAM (arXiv 2304.02643), any size, for inference.

    precision "reference" computes everything in float32. "fast" runs the image encoder in bfloat16 and allows TF32
    products on CUDA; prompts, predicted IoU and mask logits stay float32 in both.
    """

    mask_threshold = 0.0

    def __init__(
        self, model: Sam, device: torch.device, precision: Precision, checkpoint: LoadedCheckpoint | None = None
    ):
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = device
        self.precision: Precision = precision
        self.checkpoint = checkpoint
        self.image_size = model.architecture.image_size
        self.logits_size = 4 * model.architecture.grid
        self._encoder_dtype = torch.bfloat16 if precision == "fast" else torch.float32
        self.model.image_encoder.to(self._encoder_dtype)
        self._set_tf32()
        with torch.inference_mode():
            self._positions = self.model.prompt_encoder.dense_positions()
        if device.type == "cpu":
            keep_freed_memory()

    @property
    def prompts_per_chunk(self) -> int:
        # A prompt's own copy of the image embedding is the decoder's unit of traffic. On the CPU a few of them should
        # stay inside the cache, and of a small model no more than leaves each thread work to the end; on a GPU there
        # should be enough of them to fill it.
        bytes_per_prompt = self._positions.numel() * 4
        if self.device.type == "cpu":
            return max(1, min(64, 2**25 // bytes_per_prompt))
        return max(1, 2**31 // bytes_per_prompt)

    @property
    def prompt_threads(self) -> int:
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    @property
    def views_per_batch(self) -> int:
        # On the CPU the products of one view are large enough; a GPU has room for those of several.
        return 1 if self.device.type == "cpu" else 8

    def prepare(self, image: np.ndarray) -> View:
        resized = resize_image(image, self.image_size)
        height, width = resized.shape[:2]
        frame = np.zeros((3, self.image_size, self.image_size), np.uint8)
        frame[:, :height, :width] = resized.transpose(2, 0, 1)
        return View(torch.from_numpy(frame), (height, width), image.shape[:2])

    @torch.inference_mode()
    def encode(self, views: list[View]) -> Embeddings:
        self._set_tf32()
        # In batches of views_per_batch whatever is given: a view's last bits depend on how many there are.
        features = []
        for start in range(0, len(views), self.views_per_batch):
            batch = views[start : start + self.views_per_batch]
            pixels = torch.stack([view.pixels for view in batch]).to(self.device)
            images = self.model.normalise(pixels, [view.input_shape for view in batch])
            features.append(self.model.image_encoder(images.to(self._encoder_dtype)).float())
        return Embeddings(torch.cat(features))

    @torch.inference_mode()
    def decode(
        self,
        embeddings: Embeddings,
        view: int,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
    ) -> Decoded:
        self._set_tf32()
        decoder = self.model.mask_decoder
        tokens, dense = self.model.prompt_encoder(
            *(None if prompt is None else prompt.to(self.device) for prompt in (points, labels, boxes, masks))
        )
        image = embeddings.features[view].flatten(1).mT + dense
        decoded = decoder.read(image, self._positions, tokens)
        outputs = slice(1, None) if multimask else slice(0, 1)

        @torch.inference_mode()
        def logits(wanted: Tensor) -> Tensor:
            prompts = wanted.any(1).nonzero()[:, 0]
            if not len(prompts):
                return decoded.iou.new_zeros(0, self.logits_size, self.logits_size)
            self._set_tf32()
            # On a CPU one by one, which needs no copy of the prompts' images.
            some = [slice(i, i + 1) for i in prompts.tolist()] if self.device.type == "cpu" else [prompts]
            pieces = []
            for part in some:
                chosen = decoded[part]
                logits = decoder.mask_logits(chosen.image, decoder.mask_weights(chosen, outputs))
                pieces.append(logits[wanted[part]])
            return torch.cat(pieces)

        return Decoded(decoded.iou[:, outputs], logits)

    def _set_tf32(self) -> None:
        """Before every use: it is a setting of the process, and another model in it may want it otherwise."""
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.precision == "fast"
            torch.backends.cudnn.allow_tf32 = self.precision == "fast"


def load_segmenter(
    name_or_path: str | Path,
    device: str = "auto",
    precision: Precision = "reference",
    *,
    expected_sha256: str | None = None,
    compiled: bool = False,
) -> SamSegmenter:
    """Loads a SAM by name ("starter", "sam_vit_b", "sam_vit_l", "sam_vit_h"), from a checkpoint file or from a URL.

    What is not here is fetched once: a known model, or a file behind s3://, gs://, az://, hf:// or https://.
    device: "auto" (CUDA if there is one, else the CPU), "cpu", "cuda", "cuda:1", ...
    precision: "reference" (float32 throughout) or "fast" (bfloat16 image encoder).
    expected_sha256: what the weights must be; others are refused.
    compiled: through torch.compile, which takes minutes at first and is faster then (see `compiled.py`).
    Raises CheckpointError for weights that are missing, not a usable SAM or not the expected ones, UsageError for an
    unknown device or precision, ModelFailure for a device that does not take the model, as one without free memory.
    """
    if precision not in ("reference", "fast"):
        raise UsageError(f"unknown precision {precision!r}: use 'reference' or 'fast'")
    target = choose_device(device)
    checkpoint = load_checkpoint(name_or_path, expected_sha256)
    with Uninitialised():
        model = Sam(checkpoint.architecture)
    model.load_state_dict(checkpoint.state)
    if compiled:
        compile_networks(model)
    checkpoint = replace(checkpoint, state={})  # one copy of the weights is enough
    try:
        return SamSegmenter(model, target, precision, checkpoint)
    except RuntimeError as error:
        if target.type == "cpu":
            raise
        raise ModelFailure(
            f"{target} does not take {checkpoint.name} ({(str(error).splitlines() or [type(error).__name__])[0]}): "
            "end what else uses it (nvidia-smi lists that), or choose another --device"
        ) from error


def choose_device(device: str) -> torch.device:
    """ "auto" or a torch device string -> a device that exists. Raises UsageError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {device!r} is not there: this process sees {torch.cuda.device_count()} CUDA device(s); "
            "use --device cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    return chosen
