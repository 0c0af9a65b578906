"""The stock transformer's forward, arranged for training: one static shape for every aspect ratio.

A picture is a row of 256 tokens (2x2 latent cells each), padded where its bin has fewer. Its grid is data, not shape:
a table of neighbours tells the depthwise convolution who lies beside whom, so a batch mixes all bins and one compiled
block, one CUDA graph, serves them all. The parameters are the stock module's own, and the numbers are its numbers
(tests compare them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SanaTransformer2DModel
from torch import Tensor

TOKENS, PATCH_VALUES = 256, 128


@dataclass(frozen=True, eq=False)
class Grids:
    """What depends on a bin's grid alone; one row a bin.

    Args:
        keep: (bins, 256) 1 for a token of the picture, 0 for padding.
        neighbours: (bins, 256, 9) index of each neighbour in a 3x3 window, reading order; -1 outside.
        positions: (bins, 256, width) the stock position embedding.
    """

    keep: Tensor
    neighbours: Tensor
    positions: Tensor


@torch.no_grad()
def grids(transformer: SanaTransformer2DModel, shapes: list[tuple[int, int]]) -> Grids:
    """Tables for token grids (height, width), on the transformer's device."""
    embed, where = transformer.patch_embed, transformer.device
    width = embed.proj.bias.numel()
    keep = torch.zeros(len(shapes), TOKENS)
    neighbours = torch.full((len(shapes), TOKENS, 9), -1, dtype=torch.int64)
    positions = torch.zeros(len(shapes), TOKENS, width)
    for row, (tall, wide) in enumerate(shapes):
        count = tall * wide
        keep[row, :count] = 1
        y, x = torch.arange(count) // wide, torch.arange(count) % wide
        for slot in range(9):
            ny, nx = y + slot // 3 - 1, x + slot % 3 - 1
            inside = (ny >= 0) & (ny < tall) & (nx >= 0) & (nx < wide)
            neighbours[row, :count, slot] = torch.where(inside, ny * wide + nx, -1)
        zeros = torch.zeros(1, 32, 2 * tall, 2 * wide, device=where)
        positions[row, :count] = (embed(zeros)[0] - embed.proj.bias).float().cpu()
    return Grids(keep.to(where), neighbours.to(where), positions.to(where))


class Depthwise(torch.autograd.Function):
    """3x3 depthwise convolution over a neighbour table; its backward gathers too, where autograd's would scatter."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, index: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """x: (rows, channels); weight: (9, channels); bias: (channels,); index: (rows, 9), -1 for none."""
        ctx.save_for_backward(x, weight, index)
        total = bias.float()
        for slot in range(9):
            total = total + _neighbour(x, index, slot) * weight[slot].float()
        return total.to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[no-untyped-def]
        """Being someone's left neighbour means having them on the right: slot s turns into slot 8 - s."""
        x, weight, index = ctx.saved_tensors
        by_x = torch.zeros_like(x, dtype=torch.float32)
        by_weight = []
        for slot in range(9):
            by_x = by_x + _neighbour(gradient, index, 8 - slot) * weight[slot].float()
            by_weight.append((gradient.float() * _neighbour(x, index, slot)).sum(0))
        return by_x.to(x.dtype), torch.stack(by_weight).to(weight.dtype), gradient.float().sum(0).to(weight.dtype), None


def _neighbour(x: Tensor, index: Tensor, slot: int) -> Tensor:
    column = index[:, slot]
    return x[column.clamp(min=0)].float() * (column >= 0)[:, None]


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (F.layer_norm(x.float(), x.shape[-1:], eps=1e-6) * (1 + scale) + shift).to(x.dtype)


def block_weights(block: Any) -> tuple[Tensor, ...]:
    """The parameters of a stock block in the order that `block_forward` takes."""
    own, cross, ff = block.attn1, block.attn2, block.ff
    return (
        block.scale_shift_table,
        own.to_q.weight, own.to_k.weight, own.to_v.weight, own.norm_q.weight, own.norm_k.weight,
        own.to_out[0].weight, own.to_out[0].bias,
        cross.to_q.weight, cross.to_q.bias, cross.to_k.weight, cross.to_k.bias, cross.to_v.weight, cross.to_v.bias,
        cross.norm_q.weight, cross.norm_k.weight, cross.to_out[0].weight, cross.to_out[0].bias,
        ff.conv_inverted.weight, ff.conv_inverted.bias, ff.conv_depth.weight, ff.conv_depth.bias, ff.conv_point.weight,
    )  # fmt: skip


def block_forward(
    x: Tensor, modulation: Tensor, text: Tensor, text_bias: Tensor, keep: Tensor, index: Tensor, *weights: Tensor,
    depthwise: Callable[..., Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """One SanaTransformerBlock.

    Args:
        x: (batch, 256, width), in the compute dtype.
        modulation: (batch, 6, width) float32, of the timestep.
        text: (batch, words, width), compute dtype.
        text_bias: (batch, words) float32, 0 or -10000.
        keep: (batch, 256) 1 or 0.
        index: (batch * 256, 9) int32, neighbours in the flattened batch.
        weights: of `block_weights`, float32.
        depthwise: another form of `Depthwise.apply`.
    """
    (
        table, wq, wk, wv, norm_q, norm_k, wo, bo,
        cq, cbq, ck, cbk, cv, cbv, cross_norm_q, cross_norm_k, co, cbo,
        inverted, inverted_bias, depth, depth_bias, point,
    ) = weights  # fmt: skip
    batch, tokens, width = x.shape
    kind = x.dtype
    heads = width // 32
    shift1, scale1, gate1, shift2, scale2, gate2 = (table[None] + modulation).chunk(6, dim=1)

    h = _modulated(x, scale1, shift1)
    q, k, v = F.linear(h, torch.cat((wq, wk, wv)).to(kind)).chunk(3, dim=-1)
    q, k = F.relu(_rms(q, norm_q, 1e-5)), F.relu(_rms(k, norm_k, 1e-5)) * keep[:, :, None].to(kind)
    q, k, v = (t.unflatten(2, (heads, 32)).transpose(1, 2) for t in (q, k, v))
    norm = (q.float() * k.float().sum(dim=2, keepdim=True)).sum(-1, keepdim=True)
    h = (q @ (k.transpose(2, 3) @ v)).float() / (norm + 1e-15)
    h = h.to(kind).transpose(1, 2).flatten(2)
    x = (x.float() + gate1 * F.linear(h, wo.to(kind), bo.to(kind)).float()).to(kind)

    q = _rms(F.linear(x, cq.to(kind), cbq.to(kind)), cross_norm_q, 1e-5)
    k = _rms(F.linear(text, ck.to(kind), cbk.to(kind)), cross_norm_k, 1e-5)
    v = F.linear(text, cv.to(kind), cbv.to(kind))
    q, k, v = (t.unflatten(2, (heads, 32)).transpose(1, 2) for t in (q, k, v))
    scores = (q @ k.transpose(2, 3)).float() * 32**-0.5 + text_bias[:, None, None]
    h = (torch.softmax(scores, dim=-1).to(kind) @ v).transpose(1, 2).flatten(2)
    x = F.linear(h, co.to(kind), cbo.to(kind)) + x

    h = _modulated(x, scale2, shift2)
    h = F.silu(F.linear(h, inverted.flatten(1).to(kind), inverted_bias.to(kind)))
    h = (depthwise or Depthwise.apply)(h.reshape(batch * tokens, -1), depth.flatten(1).t(), depth_bias, index)
    value, gate = h.chunk(2, dim=-1)
    h = F.linear(value * F.silu(gate), point.flatten(1).to(kind)).view(batch, tokens, width)
    return (x.float() + gate2 * h.float()).to(kind)


Block = Callable[..., Tensor]


def forward(
    transformer: SanaTransformer2DModel,
    tables: Grids,
    tokens: Tensor,
    bins: Tensor,
    timestep: Tensor,
    text: Tensor,
    text_mask: Tensor,
    *,
    guidance: Tensor | None = None,
    block: Block = block_forward,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`SanaTransformer2DModel.forward` on packed latents.

    Args:
        transformer: its parameters are used, its own forward is not.
        tables: of `grids`.
        tokens: (batch, 256, 128), packed as `pack` does.
        bins: (batch,) row of the tables.
        timestep: (batch,) in [0, 1].
        text: (batch, words, channels) of the text encoder.
        text_mask: (batch, words) 1 or 0.
        guidance: (batch,) for the sprint model, already scaled.
        block: `block_forward` or a compiled form of it.
        dtype: compute dtype.

    Returns:
        (batch, 256, 128) float32; padding is meaningless.
    """
    batch = len(tokens)
    width = transformer.patch_embed.proj.out_channels
    patch = transformer.patch_embed.proj.weight.permute(0, 2, 3, 1).reshape(width, PATCH_VALUES)
    x = F.linear(tokens.to(dtype), patch.to(dtype), transformer.patch_embed.proj.bias.to(dtype))
    x = x + tables.positions[bins].to(dtype)
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        if guidance is None:
            modulation, embedded = transformer.time_embed(timestep, batch_size=batch, hidden_dtype=torch.float32)
        else:
            modulation, embedded = transformer.time_embed(timestep, guidance=guidance, hidden_dtype=torch.float32)
        words = transformer.caption_projection(text)
    words = _rms(words.float(), transformer.caption_norm.weight, 1e-5).to(dtype)
    modulation = modulation.float().view(batch, 6, width)
    text_bias = (1 - text_mask.float()) * -10000.0
    local = tables.neighbours[bins]
    start = (torch.arange(batch, device=tokens.device) * TOKENS)[:, None, None]
    index = torch.where(local >= 0, local + start, -1).view(batch * TOKENS, 9).int()
    keep = tables.keep[bins]
    for layer in transformer.transformer_blocks:
        x = block(x, modulation, words, text_bias, keep, index, *block_weights(layer))
    shift, scale = (transformer.scale_shift_table[None] + embedded.float()[:, None]).chunk(2, dim=1)
    x = _modulated(x, scale, shift)
    return F.linear(x, transformer.proj_out.weight.to(dtype), transformer.proj_out.bias.to(dtype)).float()


def pack(latents: Tensor) -> Tensor:
    """(batch, 32, height, width) to (batch, 256, 128): 2x2 patches in reading order, zeros after the last."""
    patches = latents.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return F.pad(patches, (0, 0, 0, TOKENS - patches.shape[1]))


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack` for latents of height x width."""
    tall, wide = height // 2, width // 2
    patches = tokens[:, : tall * wide].unflatten(1, (tall, wide)).unflatten(3, (2, 2, -1))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
