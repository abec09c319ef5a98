"""SAM's mask decoder: prompt tokens and an image embedding -> mask logits and predicted IoU.

Parameter names and results are those of segment-anything's `modeling/mask_decoder.py` and `modeling/transformer.py`.
The order of the sums differs, because here time goes to moving bytes, and the reference moves many that it need not:

* **Absorbed projections.** A prompt has about 7 tokens, an image 4096. Where tokens meet the image, the reference
  projects every image token to queries, keys and values, for every prompt. Here the projections are applied on the
  tokens' side: q.(Wk x) = (Wk^T q).x. The key bias cancels in the softmax.
* **Nothing repeated.** All prompts share one image embedding until the first layer writes to it.
* **IoU first.** `read` runs the transformer and the IoU head; `mask_logits` upscales only the prompts asked for.
* **Upscaling as products.** A 2x2 transposed convolution of stride 2 is a product a token; the pixels are put in
  order once, after the dot product with the mask token has removed the channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_engine.sam.layers import ChannelLayerNorm, TransformerMLP


@dataclass(slots=True)
class DecodedTokens:
    """What the transformer leaves of P prompts: enough for scores now, and for masks if they are wanted."""

    iou: Tensor  # PxM predicted IoU; mask 0 is the single-mask output, 1.. are the ambiguity-aware ones
    weights: Tensor  # PxMxD one vector a mask: its dot product with the upscaled image is the mask
    image: Tensor  # PxNxC the image embedding as each prompt has changed it


class MaskDecoder(nn.Module):
    def __init__(
        self,
        *,
        dim: int,
        grid: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        attention_downsample: int,
        num_masks: int,
        iou_hidden_dim: int,
        iou_depth: int,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.transformer = TwoWayTransformer(dim, depth, num_heads, mlp_dim, attention_downsample)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_masks, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            ChannelLayerNorm(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(num_masks))
        self.iou_prediction_head = MLP(dim, iou_hidden_dim, num_masks, iou_depth)

    def read(self, image: Tensor, positions: Tensor, prompt_tokens: Tensor) -> DecodedTokens:
        """Runs the transformer for P prompts.

        image NxC (shared by all prompts) or PxNxC, positions NxC, prompt_tokens PxTxC.
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(prompt_tokens), -1, -1), prompt_tokens], 1)
        tokens, image = self.transformer(image, positions, tokens)
        mask_tokens = tokens[:, 1 : len(own)]
        weights = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        return DecodedTokens(self.iou_prediction_head(tokens[:, 0]), weights, image)

    def mask_logits(self, image: Tensor, weights: Tensor) -> Tensor:
        """image PxNxC and weights PxKxD of the masks wanted -> logits PxKx(4G)x(4G)."""
        first, norm, _, second, _ = self.output_upscaling
        assert isinstance(norm, ChannelLayerNorm)
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(second, nn.ConvTranspose2d)
        assert first.bias is not None
        assert second.bias is not None
        prompts, cells = image.shape[0], image.shape[1]
        # Each token becomes 2x2 cells of C/4 channels, each of these 2x2 cells of C/8 channels.
        x = image.reshape(-1, image.shape[2]) @ first.weight.permute(0, 2, 3, 1).flatten(1)
        x = x.view(-1, first.out_channels) + first.bias
        x = F.gelu(F.layer_norm(x, (first.out_channels,), norm.weight, norm.bias, norm.eps))
        x = x @ second.weight.permute(0, 2, 3, 1).flatten(1)
        x = F.gelu(x.view(-1, second.out_channels) + second.bias)
        masks = weights @ x.view(prompts, cells * 16, second.out_channels).mT
        side = self.grid
        masks = masks.view(*masks.shape[:2], side, side, 2, 2, 2, 2)  # y, x, then the two refinements' (y, x)
        return masks.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(*masks.shape[:2], 4 * side, 4 * side)


class TwoWayTransformer(nn.Module):
    def __init__(self, dim: int, depth: int, num_heads: int, mlp_dim: int, attention_downsample: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(dim, num_heads, mlp_dim, attention_downsample, first=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = CrossAttention(dim, num_heads, attention_downsample)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, positions: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """image NxC or PxNxC, positions NxC, prompt PxTxC -> tokens PxTxC, image PxNxC."""
        tokens = prompt
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompt, positions)
        tokens = tokens + self.final_attn_token_to_image.gather(tokens + prompt, image, positions)
        return self.norm_final_attn(tokens), image


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, to the image, pass an MLP; then the image attends to the tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, attention_downsample: int, first: bool) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = CrossAttention(dim, num_heads, attention_downsample)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = TransformerMLP(dim, mlp_dim, F.relu)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = CrossAttention(dim, num_heads, attention_downsample)
        self.first = first

    def forward(self, tokens: Tensor, image: Tensor, prompt: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        # At first the tokens still are the prompt: no residual, no positional encoding.
        attended = self.self_attn(tokens, tokens) if self.first else tokens + self.self_attn(tokens + prompt, tokens)
        tokens = self.norm1(attended)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.gather(tokens + prompt, image, positions))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token.scatter(image, positions, tokens + prompt, tokens)
        return tokens, self.norm4(image)


class _Projections(nn.Module):
    """Query, key, value and output projections with H heads of size d: C -> H*d -> C."""

    def __init__(self, dim: int, num_heads: int, downsample: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = dim // downsample
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.q_proj.out_features // self.num_heads)

    def heads(self, x: Tensor) -> Tensor:
        """PxTx(H*d) -> PxHxTxd."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def per_head(self, projection: nn.Linear) -> Tensor:
        """A projection's weight as HxdxC."""
        return projection.weight.unflatten(0, (self.num_heads, -1))


class SelfAttention(_Projections):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads, downsample=1)

    def forward(self, queries_and_keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = self.q_proj(queries_and_keys), self.k_proj(queries_and_keys), self.v_proj(values)
        out = F.scaled_dot_product_attention(self.heads(q), self.heads(k), self.heads(v))
        return self.out_proj(out.transpose(1, 2).flatten(2))


class CrossAttention(_Projections):
    """Attention between T prompt tokens and N image tokens (N >> T), every projection on the tokens' side."""

    def gather(self, queries: Tensor, image: Tensor, positions: Tensor) -> Tensor:
        """Tokens attend to the image: queries PxTxC, image NxC or PxNxC (keys add `positions`) -> PxTxC."""
        prompts, count = queries.shape[:2]
        q = self.heads(self.q_proj(queries)) * self.scale
        absorbed = (q @ self.per_head(self.k_proj)).flatten(1, 2)  # Px(H*T)xC: queries in the image's own space
        if image.dim() == 2:
            scores = absorbed @ (image + positions).mT
        else:
            scores = absorbed @ image.mT + absorbed @ positions.mT
        pooled = (scores.softmax(-1) @ image).view(prompts, self.num_heads, count, image.shape[-1])
        out = pooled @ self.per_head(self.v_proj).mT
        return self.out_proj(out.transpose(1, 2).flatten(2) + self.v_proj.bias)

    def scatter(self, image: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The image attends to the tokens: queries are image + positions, keys and values PxTxC -> PxNxC."""
        count = keys.shape[1]
        k = self.heads(self.k_proj(keys)) * self.scale
        absorbed = (k @ self.per_head(self.q_proj)).flatten(1, 2)  # Px(H*T)xC: keys in the image's own space
        offset = (k @ self.q_proj.bias.view(self.num_heads, -1, 1)).flatten(1)  # Px(H*T)
        if image.dim() == 2:
            scores = (image + positions) @ absorbed.mT
        else:
            scores = image @ absorbed.mT + positions @ absorbed.mT
        scores = scores + offset[:, None]
        shares = scores.unflatten(-1, (self.num_heads, count)).softmax(-1).flatten(2)
        v = self.heads(self.v_proj(values))
        out = self.out_proj.weight.unflatten(1, (self.num_heads, -1)).permute(1, 2, 0)  # HxdxC
        return shares @ (v @ out).flatten(1, 2) + self.out_proj.bias


class MLP(nn.Module):
    def __init__(self, in_dim: int, hidden: int, out_dim: int, depth: int) -> None:
        super().__init__()
        sizes = [in_dim] + [hidden] * (depth - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
