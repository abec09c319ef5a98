"""SAM's image encoder: a ViT with windowed and global attention and decomposed relative positions.

Parameter names and results are those of segment-anything's `modeling/image_encoder.py` (ViTDet, arXiv 2203.16527),
so its checkpoints load unchanged. Three things are computed differently, with the same result in exact arithmetic:

* relative positions ride inside the attention product (`_attend`), so no [tokens x tokens] bias is ever built, or on
  a CPU, where operations are dearer than cache, block of queries by block (`_attend_in_blocks`);
* windows are padded after the query/key/value projection: a padded token is zero, its projection is the bias;
* the neck runs channels-last, where its layer norms are plain ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_engine.sam.layers import TransformerMLP

LAYER_NORM_EPS = 1e-6
_BLOCK_SCORES = 2**21  # attention scores at a time on a CPU: few enough for its cache, enough to keep its cores busy


class ImageEncoder(nn.Module):
    """Normalised, padded image Bx3xSxS -> image embedding Bx(out_dim)x(S/patch)x(S/patch)."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        window_size: int,
        global_blocks: tuple[int, ...],
        out_dim: int,
    ) -> None:
        super().__init__()
        grid = image_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, embed_dim))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_dim, grid, 0 if i in global_blocks else window_size) for i in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_dim, kernel_size=1, bias=False),
            nn.LayerNorm(out_dim, eps=LAYER_NORM_EPS),
            nn.Conv2d(out_dim, out_dim, kernel_size=3, padding=1, bias=False),
            nn.LayerNorm(out_dim, eps=LAYER_NORM_EPS),
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        project, norm1, mix, norm2 = self.neck
        assert isinstance(project, nn.Conv2d)
        x = norm1(F.linear(x, project.weight.flatten(1)))
        x = mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return norm2(x).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """Bx3xSxS -> BxGxGxC: one linear projection a patch."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)


class Block(nn.Module):
    """A pre-norm transformer block on BxGxGxC; `window_size` 0 means global attention."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, grid: int, window_size: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads, span=window_size or grid)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = TransformerMLP(dim, mlp_dim, F.gelu)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), self.window_size)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Multi-head attention with decomposed relative position embeddings over a square of side `span`."""

    def __init__(self, dim: int, num_heads: int, span: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * span - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * span - 1, dim // num_heads))

    def forward(self, x: Tensor, window_size: int) -> Tensor:
        height, width = x.shape[1:3]
        qkv = self.qkv(x)
        if window_size:
            qkv = _partition(qkv, window_size, self.qkv.bias)
        in_blocks = not window_size and qkv.device.type == "cpu" and not torch.is_grad_enabled()
        out = self._attend_in_blocks(qkv) if in_blocks else self._attend(qkv)
        if window_size:
            out = _unpartition(out, window_size, height, width)
        return self.proj(out)

    def _attend(self, qkv: Tensor) -> Tensor:
        """BxSxSx3C -> BxSxSxC.

        score(i, j) = q_i.k_j/sqrt(d) + q_i.Rh[y_i - y_j] + q_i.Rw[x_i - x_j]. The last two terms depend on i and on
        one coordinate of j only, so they are a product of [rel_h, rel_w] with one-hot rows: appended to q and k, they
        make any fused attention kernel compute the reference's scores.
        """
        batch, span, _, three_dim = qkv.shape
        dim = three_dim // 3
        head_dim = dim // self.num_heads
        tokens = span * span
        q, k, v = qkv.view(batch, tokens, 3, self.num_heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)

        rel_h, rel_w = self._relative(q.unflatten(2, (span, span)))
        one_hot = torch.eye(span, dtype=q.dtype, device=q.device)
        rows = torch.cat([one_hot.repeat_interleave(span, 0), one_hot.repeat(span, 1)], 1)

        q = torch.cat([q * head_dim**-0.5, rel_h.flatten(2, 3), rel_w.flatten(2, 3)], -1)
        k = torch.cat([k, rows.expand(batch, self.num_heads, tokens, 2 * span)], -1)
        v = F.pad(v, (0, 2 * span))  # fused kernels want one head size for q, k and v
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :head_dim]
        return out.transpose(1, 2).reshape(batch, span, span, dim)

    def _attend_in_blocks(self, qkv: Tensor) -> Tensor:
        """The same, a third of the operations: nothing is appended, the bias is built for some queries at a time."""
        batch, span, _, three_dim = qkv.shape
        head_dim = three_dim // 3 // self.num_heads
        tokens = span * span
        exact = torch.promote_types(qkv.dtype, torch.float32)  # bfloat16 scores would be coarse, and slow
        heads = qkv.view(batch, tokens, 3, self.num_heads, head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = heads.to(exact).contiguous().flatten(1, 2).unbind(0)
        rel_h, rel_w = self._relative(q.unflatten(1, (span, span)))
        q = q * head_dim**-0.5
        out = torch.empty_like(q)
        rows = max(1, _BLOCK_SCORES // (span * tokens))
        for head, keys in enumerate(k.mT):
            for y in range(0, span, rows):
                some = slice(y * span, (y + rows) * span)
                scores = (rel_h[head, y : y + rows, :, :, None] + rel_w[head, y : y + rows, :, None, :]).view(
                    -1, tokens
                )
                scores.addmm_(q[head, some], keys)
                torch.mm(scores.softmax(-1), v[head], out=out[head, some])
        return out.unflatten(0, (batch, self.num_heads)).transpose(1, 2).reshape(batch, span, span, -1).to(qkv.dtype)

    def _relative(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """q ...xSxSxd, unscaled -> q.Rh for each key's row and q.Rw for each key's column, each ...xSxSxS."""
        span = q.shape[-2]
        offsets = torch.arange(span, device=q.device)
        offsets = offsets[:, None] - offsets[None, :] + span - 1
        rel_h = torch.einsum("...hwc,hkc->...hwk", q, self.rel_pos_h[offsets].to(q.dtype))
        rel_w = torch.einsum("...hwc,wkc->...hwk", q, self.rel_pos_w[offsets].to(q.dtype))
        return rel_h, rel_w


def _partition(qkv: Tensor, window: int, pad_value: Tensor) -> Tensor:
    """BxHxWxC -> (B * windows) x window x window x C, the padding filled with what a zero token projects to."""
    batch, height, width, channels = qkv.shape
    rows, columns = -(-height // window), -(-width // window)
    if rows * window > height or columns * window > width:
        padded = pad_value.to(qkv.dtype).expand(batch, rows * window, columns * window, channels).clone()
        padded[:, :height, :width] = qkv
        qkv = padded
    qkv = qkv.view(batch, rows, window, columns, window, channels)
    return qkv.transpose(2, 3).reshape(-1, window, window, channels)


def _unpartition(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `_partition`, padding dropped: -> BxHxWxC."""
    rows, columns = -(-height // window), -(-width // window)
    x = windows.view(-1, rows, columns, window, window, windows.shape[-1]).transpose(2, 3)
    x = x.reshape(-1, rows * window, columns * window, windows.shape[-1])
    return x[:, :height, :width]
