"""Interactive segmentation: segment-anything's `SamPredictor`, method for method but `set_torch_image`.

predictor = SamPredictor(load_segmenter("sam_vit_b"))
predictor.set_image(image)
masks, scores, logits = predictor.predict(point_coords=np.array([[x, y]]), point_labels=np.array([1]))
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data_engine.errors import UsageError
from data_engine.sam.resize import scale_points
from data_engine.sam.segmenter import Embeddings, SamSegmenter, View


class SamPredictor:
    """Encodes one image, then answers any number of prompts on it."""

    _view: View | None
    _embeddings: Embeddings | None

    def __init__(self, segmenter: SamSegmenter) -> None:
        self.segmenter = segmenter
        self.reset_image()

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """image: HxWx3 uint8, in the order of channels that `image_format` ("RGB" or "BGR") says."""
        if image_format not in ("RGB", "BGR"):
            raise UsageError(f"image_format must be 'RGB' or 'BGR', not {image_format!r}")
        self.reset_image()
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UsageError(f"an image must be HxWx3 uint8, not {'x'.join(map(str, image.shape))} {image.dtype}")
        if image_format == "BGR":
            image = np.ascontiguousarray(image[..., ::-1])
        self._view = self.segmenter.prepare(image)
        self._embeddings = self.segmenter.encode([self._view])

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for one prompt on the image that was set.

        point_coords: Nx2 (x, y) in pixels of the image, with point_labels N (1 foreground, 0 background);
        box: 4 (x0, y0, x1, y1); mask_input: 1x(4G)x(4G) logits of an earlier answer.
        Returns masks MxHxW bool (logits with `return_logits`), scores M, low-resolution logits Mx(4G)x(4G);
        M is 3 with `multimask_output`, else 1.
        """
        view = self._require_image()[0]
        points = labels = boxes = masks = None
        if point_coords is not None:
            if point_labels is None:
                raise UsageError("point_coords need point_labels: 1 for foreground, 0 for background")
            points = self._to_frame(point_coords, view)[None]
            labels = torch.as_tensor(np.asarray(point_labels), dtype=torch.int)[None]
        if box is not None:
            boxes = self._to_frame(np.asarray(box).reshape(2, 2), view).reshape(1, 4)
        if mask_input is not None:
            masks = torch.as_tensor(np.asarray(mask_input), dtype=torch.float)[None]
            side = self.segmenter.logits_size
            if masks.shape != (1, 1, side, side):
                raise UsageError(f"mask_input must be 1x{side}x{side} logits of an earlier answer")
        answer = self.predict_torch(points, labels, boxes, masks, multimask_output, return_logits)
        full, scores, low = (tensor[0].cpu().numpy() for tensor in answer)
        return full, scores, low

    @torch.inference_mode()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks for B prompts already in the model's input frame: points BxNx2, labels BxN, boxes Bx4, masks Bx1xhxw.

        Returns masks BxMxHxW, scores BxM, low-resolution logits BxMx(4G)x(4G).
        """
        view, embeddings = self._require_image()
        decoded = self.segmenter.decode(
            embeddings,
            0,
            points=point_coords,
            labels=point_labels,
            boxes=boxes,
            masks=mask_input,
            multimask=multimask_output,
        )
        low = decoded.logits(torch.ones_like(decoded.iou, dtype=torch.bool)).unflatten(0, decoded.iou.shape)
        size, (height, width) = self.segmenter.image_size, view.input_shape
        full = F.interpolate(low, (size, size), mode="bilinear", align_corners=False)[..., :height, :width]
        full = F.interpolate(full, view.shape, mode="bilinear", align_corners=False)
        return (full if return_logits else full > self.segmenter.mask_threshold), decoded.iou, low

    def get_image_embedding(self) -> Tensor:
        """The embedding of the image that was set: 1xCxGxG."""
        return self._require_image()[1].features

    def reset_image(self) -> None:
        self._view = None
        self._embeddings = None

    @property
    def device(self) -> torch.device:
        return self.segmenter.device

    def _to_frame(self, points: np.ndarray, view: View) -> Tensor:
        scaled = scale_points(points, view.shape, self.segmenter.image_size)
        return torch.as_tensor(scaled, dtype=torch.float)

    def _require_image(self) -> tuple[View, Embeddings]:
        if self._view is None or self._embeddings is None:
            raise UsageError("no image is set: call set_image(image) first")
        return self._view, self._embeddings
