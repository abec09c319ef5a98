"""A SAM of any size with random weights whose masks are lifelike.

What a network costs does not depend on what its weights know. What is left to do after it does: how many masks pass
the thresholds, how large they are, how many are doubles. Weights as torch draws them answer every click with the same
low field of logits, and nothing is left to do. `calibrated` plants in the decoder that a click marks what lies around
it, and sets from the answers to some clicks on a picture of noise that

* half of the masks have a predicted IoU above 0.88 (mean 0.88, standard deviation 0.1);
* a tenth, a twentieth and a fiftieth of the frame are inside the three masks of a click, with borders that follow the
  picture, and slopes so steep that most masks pass the released stability threshold.

On photographs, which are not noise, a third to two thirds of the masks then pass the first threshold. ViT-B with 32x32
points on truck.jpg: 44 % of 3,072 masks pass, 72 % of those are stable, and suppression leaves 134.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data_engine.sam.model import Sam, SamArchitecture, Uninitialised
from data_engine.sam.segmenter import Decoded, SamSegmenter

AREAS = (0.10, 0.05, 0.02)  # of the frame: whole, part, subpart
_IOU_MEAN, _IOU_SPREAD = 0.88, 0.1
_HEIGHT = 200.0  # logits between the middle of a mask and what is far from it
_ROUGHNESS = 30.0  # logits, standard deviation of what the picture adds
_CLICKS = 32


@torch.no_grad()
def calibrated(architecture: SamArchitecture, seed: int = 0, device: torch.device | str = "cpu") -> Sam:
    """The same seed gives the same weights on the same kind of device. Draws every weight once and encodes once."""
    device = torch.device(device)
    with torch.device(device), Uninitialised():
        sam = Sam(architecture)
    sam.eval().requires_grad_(False)
    _draw(sam, torch.Generator(device).manual_seed(seed))
    _plant_locality(sam)
    _calibrate(sam, device, seed)
    return sam


def noise_picture(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """HxWx3 uint8 with large and small blotches, as photographs have."""
    picture = np.zeros((height, width, 3))
    for cells in (4, 12, 40, 160):
        coarse = random.integers(0, 256, (cells, cells, 3), np.uint8)
        picture += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), float)
    return (picture / 4).astype(np.uint8)


def _draw(sam: Sam, generator: torch.Generator) -> None:
    """Every parameter, much as torch would draw it. The positional table is smooth, as training leaves it."""
    for module in sam.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("rel_pos"):
                parameter.normal_(0, 0.3, generator=generator)
            elif name == "pos_embed":
                coarse = torch.empty(1, parameter.shape[3], 6, 6, device=parameter.device)
                coarse.normal_(0, 0.3, generator=generator)
                smooth = nn.functional.interpolate(coarse, parameter.shape[1:3], mode="bicubic")
                parameter.copy_(smooth.permute(0, 2, 3, 1))
            elif isinstance(module, nn.Embedding):
                parameter.normal_(0, 0.2, generator=generator)
            elif parameter.dim() > 1:
                reach = parameter[0].numel() ** -0.5
                parameter.uniform_(-reach, reach, generator=generator)
            else:
                parameter.fill_(float(name == "weight"))  # norms are the identity, biases zero
    sam.get_buffer(_POSITIONS).normal_(generator=generator)


_POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_NEAR = 0  # the channel of the image, and of what becomes of it, that says how near the click is
_LEVEL, _RISE = 0, 1  # channels that a mask is a weighted sum of: a constant, and the nearness


def _plant_locality(sam: Sam) -> None:
    """Makes the mask decoder mark what lies near the click, with weights alone. All other weights stay random.

    A click's token is marked in one channel, the other tokens are marked with the opposite sign, and no branch of the
    transformer writes to that channel. In the last layer the image attends to the tokens by position only, so what
    is near the click takes on its mark, in a channel that the upscaling leads through to the masks.
    """
    depth, dim = sam.architecture.decoder_depth, sam.architecture.dim
    mark = dim // 2 - 1
    sam.get_buffer(_POSITIONS)[:, mark] = 0  # then a position's encoding is 0 in that channel
    for kind in range(4):
        sam.get_parameter(f"prompt_encoder.point_embeddings.{kind}.weight")[:, mark] = 3
    for name in ("prompt_encoder.not_a_point_embed", "mask_decoder.iou_token", "mask_decoder.mask_tokens"):
        sam.get_parameter(f"{name}.weight")[:, mark] = -3
    layers = "mask_decoder.transformer.layers"
    for layer in range(depth):
        for branch in ("self_attn.out_proj", "cross_attn_token_to_image.out_proj", "mlp.lin2"):
            sam.get_parameter(f"{layers}.{layer}.{branch}.weight")[mark] = 0
    _attend_to_itself(sam, mark)
    if depth > 1:
        before = sam.get_parameter(f"{layers}.{depth - 2}.norm4.weight")
        before.fill_(0.3)  # little beside the positions, by which the image will attend
        before[_NEAR] = 0
    tokens = sam.get_parameter(f"{layers}.{depth - 1}.norm3.weight")
    strength = tokens[mark].clone()
    tokens.fill_(0.3)[mark] = strength
    _attend_by_position(sam, mark)
    _lead_through(sam)


def _attend_to_itself(sam: Sam, mark: int) -> None:
    """In the first layer, whose attention no residual bypasses: so that the marks come through."""
    attention = "mask_decoder.transformer.layers.0.self_attn"
    query, key, value, out = (sam.get_parameter(f"{attention}.{name}_proj.weight") for name in ("q", "k", "v", "out"))
    query.div_(query.square().sum(0).mean().sqrt())  # of expected length one: keeps products of tokens as they are
    key.copy_(query)
    value[0] = 0
    value[0, mark] = 1
    out[mark] = 0
    out[mark, 0] = 1


def _attend_by_position(sam: Sam, mark: int) -> None:
    """The last layer's attention of the image to the tokens: each head compares some frequencies of the positions."""
    attention = f"mask_decoder.transformer.layers.{sam.architecture.decoder_depth - 1}.cross_attn_image_to_token"
    query, key, value, out = (sam.get_parameter(f"{attention}.{name}_proj.weight") for name in ("q", "k", "v", "out"))
    inner, dim = query.shape
    heads = sam.architecture.decoder_heads
    size = inner // heads
    rows = torch.arange(inner, device=query.device)
    sine_or_cosine = rows % 2 * (dim // 2) + rows // 2
    for projection in (query, key):
        projection.zero_()
        projection[rows, sine_or_cosine] = (16 / size) ** 0.5 * size**0.25  # a score of 8 where the click is
    first_of_head = rows[::size]
    value[first_of_head] = 0
    value[first_of_head, mark] = 1
    out[_NEAR] = 0
    out[_NEAR, first_of_head] = 1 / heads


def _lead_through(sam: Sam) -> None:
    """The upscaling: the nearness in a channel of its own, a constant in another, and no seams inside a cell."""
    first, second = (sam.get_parameter(f"mask_decoder.output_upscaling.{i}.weight") for i in (0, 3))
    for weight in (first, second):
        weight.copy_(2 * weight.mean((2, 3), keepdim=True).expand_as(weight))
    first[:, 0] = 0
    first[_NEAR, 0] = 1
    second[:, [_LEVEL, _RISE]] = 0
    second[0, _RISE] = 1
    sam.get_parameter("mask_decoder.output_upscaling.3.bias")[_LEVEL] = 10  # GELU(10) = 10


def _calibrate(sam: Sam, device: torch.device, seed: int) -> None:
    """Scales the heads for predicted IoU and masks. Both are linear in their last layers, so two looks are enough."""
    heads = [f"mask_decoder.output_hypernetworks_mlps.{i}.layers.2" for i in range(1, sam.architecture.num_masks)]
    weights = [sam.get_parameter(f"{head}.weight") for head in heads]
    biases = [sam.get_parameter(f"{head}.bias") for head in heads]
    for weight in weights:
        weight[[_LEVEL, _RISE]] = 0
    clicks = _Clicks(sam, device, seed)
    decoded = clicks.decode()
    textures = decoded.logits(torch.ones(decoded.iou.shape, dtype=torch.bool)).view(*decoded.iou.shape, -1)
    last = f"mask_decoder.iou_prediction_head.layers.{sam.architecture.iou_depth - 1}"
    scale = _IOU_SPREAD / decoded.iou.std(0)
    sam.get_parameter(f"{last}.weight")[1:] *= scale[:, None]
    sam.get_parameter(f"{last}.bias")[1:] = _IOU_MEAN - scale * decoded.iou.mean(0)

    saved = weights[0].clone()
    weights[0].zero_()
    biases[0][_RISE] = 1
    decoded = clicks.decode()
    wanted = torch.zeros(decoded.iou.shape, dtype=torch.bool)
    wanted[:, 0] = True
    rise = decoded.logits(wanted).flatten(1)
    weights[0].copy_(saved)

    far, middle = _quantiles(rise, 0.2, 0.995)
    for weight, bias, texture, area in zip(weights, biases, textures.unbind(1), AREAS, strict=False):
        roughness = _ROUGHNESS / texture.std()
        slope = _HEIGHT / (middle - far)
        weight.mul_(roughness)
        bias[_RISE] = slope
        bias[_LEVEL] = -_quantiles(roughness * texture + slope * rise, 1 - area)[0] / 10


def _quantiles(values: Tensor, *shares: float) -> list[float]:
    ordered = values.flatten().sort().values
    return [float(ordered[int(share * (len(ordered) - 1))]) for share in shares]


class _Clicks:
    """Some clicks on a picture of noise."""

    def __init__(self, sam: Sam, device: torch.device, seed: int) -> None:
        self._segmenter = SamSegmenter(sam, device, "reference")
        size = sam.architecture.image_size
        random = np.random.default_rng(seed)
        self._embeddings = self._segmenter.encode([self._segmenter.prepare(noise_picture(size, size, random))])
        self._points = torch.from_numpy(random.uniform(0, size, (_CLICKS, 1, 2)))

    def decode(self) -> Decoded:
        labels = torch.ones(_CLICKS, 1, dtype=torch.int)
        return self._segmenter.decode(self._embeddings, 0, points=self._points, labels=labels)
