"""SAM's prompt encoder: points, boxes and low-resolution masks -> tokens and dense embeddings.

Parameter names and results are those of segment-anything's `modeling/prompt_encoder.py`.
Coordinates are pixels of the model's input frame (long side = image_size), x before y.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from data_engine.sam.layers import ChannelLayerNorm

NOT_A_POINT, BACKGROUND, FOREGROUND = -1, 0, 1


class PromptEncoder(nn.Module):
    def __init__(self, *, dim: int, image_size: int, grid: int, mask_hidden_dim: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid = grid
        self.pe_layer = RandomPositionEncoding(dim // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))  # background, foreground, corners
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_hidden_dim // 4, kernel_size=2, stride=2),
            ChannelLayerNorm(mask_hidden_dim // 4),
            nn.GELU(),
            nn.Conv2d(mask_hidden_dim // 4, mask_hidden_dim, kernel_size=2, stride=2),
            ChannelLayerNorm(mask_hidden_dim),
            nn.GELU(),
            nn.Conv2d(mask_hidden_dim, dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def forward(
        self,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeds P prompts.

        points PxKx2 with labels PxK (1 foreground, 0 background, -1 padding), boxes Px4 (x0 y0 x1 y1),
        masks Px1x(4G)x(4G) logits; any of them may be absent.
        Returns tokens PxTxC, and dense embeddings: PxNxC of the masks (N = G*G, row-major), or C if there are none.
        """
        tokens = []
        if points is not None:
            assert labels is not None, "points need labels"
            tokens.append(self._embed_points(points, labels, pad=boxes is None))
        if boxes is not None:
            tokens.append(self._embed_boxes(boxes))
        if masks is None:
            dense = self.no_mask_embed.weight[0]
        else:
            dense = self.mask_downscaling(masks).flatten(2).transpose(1, 2)
        if not tokens:
            count = 1 if masks is None else len(masks)
            tokens.append(self.no_mask_embed.weight.new_zeros(count, 0, self.no_mask_embed.embedding_dim))
        return torch.cat(tokens, 1), dense

    def dense_positions(self) -> Tensor:
        """Positional encoding of the image embedding's cells: NxC, row-major."""
        centres = (
            torch.arange(self.grid, device=self.no_mask_embed.weight.device, dtype=torch.float32) + 0.5
        ) / self.grid
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self.pe_layer(torch.stack([x, y], -1)).flatten(0, 1)

    def _embed_points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        points = points + 0.5  # to the centre of the pixel
        if pad:
            points = torch.cat([points, points.new_zeros(len(points), 1, 2)], 1)
            labels = torch.cat([labels, labels.new_full((len(labels), 1), NOT_A_POINT)], 1)
        encoded = self.pe_layer((points / self.image_size).float())
        kind = labels[..., None]
        background, foreground = self._kind_embedding(0), self._kind_embedding(1)
        encoded = torch.where(kind == NOT_A_POINT, self.not_a_point_embed.weight.to(encoded.dtype), encoded)
        return encoded + (kind == BACKGROUND) * background + (kind == FOREGROUND) * foreground

    def _embed_boxes(self, boxes: Tensor) -> Tensor:
        corners = (boxes.reshape(-1, 2, 2) + 0.5) / self.image_size
        return self.pe_layer(corners.float()) + torch.cat([self._kind_embedding(2), self._kind_embedding(3)])

    def _kind_embedding(self, kind: int) -> Tensor:
        return self.point_embeddings.get_parameter(f"{kind}.weight")


class RandomPositionEncoding(nn.Module):
    """Random Fourier features (arXiv 2006.10739) of coordinates in [0, 1]: ...x2 -> ...xC, float32."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", nn.init.normal_(torch.empty(2, frequencies)))

    def forward(self, coordinates: Tensor) -> Tensor:
        phases = 2 * math.pi * ((2 * coordinates - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([phases.sin(), phases.cos()], -1)
