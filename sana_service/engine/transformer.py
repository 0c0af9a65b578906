"""The forward pass of `SanaTransformer2DModel`, split at what a step changes.

A prompt's cross-attention keys and values depend on nothing that a step changes, so they are made once (`context`) and
only for the tokens that are there; a step then runs the rest (`forward`) for rows that share a latent size and nothing
else. The modules and weights are the checkpoint's own, whatever its configuration: patch size, position embedding, norm
of queries and keys, guidance embedding. Numbers equal those of the stock forward up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from sana_service.models.checkpoint import SanaTransformer2DModel


@dataclass(frozen=True, eq=False)
class Context:
    """What the transformer attends to for one prompt, in its dtype.

    Args:
        keys: (layers, heads, tokens, head_dim), normalised where the checkpoint does.
        values: likewise.
    """

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.keys.shape[2]


@dataclass(frozen=True, eq=False)
class ContextBatch:
    """The contexts of a batch's rows, padded to the longest.

    Args:
        keys, values: (layers, rows, heads, tokens, head_dim).
        bias: (rows, 1, 1, tokens) 0 or -inf, in the transformer's dtype; None where all are equally long.
        lengths: (rows,) int32, how many keys count, for kernels that read that instead.
    """

    keys: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | None
    lengths: torch.Tensor | None = None


def stack_contexts(contexts: Sequence[Context]) -> ContextBatch:
    """One row a context, in the given order."""
    longest = max(context.tokens for context in contexts)
    keys = torch.stack([_pad(context.keys, longest) for context in contexts], dim=1)
    values = torch.stack([_pad(context.values, longest) for context in contexts], dim=1)
    if all(context.tokens == longest for context in contexts):
        return ContextBatch(keys, values, None)
    lengths = torch.tensor([context.tokens for context in contexts], device=keys.device)
    there = torch.arange(longest, device=keys.device)[None] < lengths[:, None]
    bias = torch.zeros(there.shape, dtype=keys.dtype, device=keys.device).masked_fill_(~there, float("-inf"))
    return ContextBatch(keys, values, bias[:, None, None])


def _pad(states: torch.Tensor, tokens: int) -> torch.Tensor:
    return functional.pad(states, (0, 0, 0, tokens - states.shape[2]))


class SanaForward:
    """Runs one checkpoint's transformer; used by one thread, or by two of which one calls `context` alone.

    Args:
        transformer: a stock module on its device, where it stays, and in the dtype that it keeps.
    """

    def __init__(self, transformer: SanaTransformer2DModel) -> None:
        self._module: Any = transformer
        self._blocks: list[Any] = list(transformer.transformer_blocks)
        # The module's own properties look at all of its parameters, each time.
        self.device: torch.device = transformer.device
        self.dtype: torch.dtype = transformer.dtype
        config = transformer.config
        self.embeds_guidance: bool = config.guidance_embeds
        self._guidance_scale: float = config.guidance_embeds_scale
        self._patch: int = config.patch_size

    def context(self, states: torch.Tensor) -> Context:
        """Keys and values of a prompt for every layer.

        Args:
            states: (tokens, caption_channels) text embeddings without padding.
        """
        module = self._module
        text = module.caption_norm(module.caption_projection(states.to(self.dtype)))
        keys, values = [], []
        for block in self._blocks:
            attention = block.attn2
            key = attention.to_k(text)
            keys.append(key if attention.norm_k is None else attention.norm_k(key))
            values.append(attention.to_v(text))
        heads = self._blocks[0].attn2.heads
        shape = (len(self._blocks), len(text), heads, -1)
        return Context(
            torch.stack(keys).view(shape).transpose(1, 2).contiguous(),
            torch.stack(values).view(shape).transpose(1, 2).contiguous(),
        )

    def stack(self, contexts: Sequence[Context]) -> ContextBatch:
        """The contexts of a batch's rows, in the given order; valid until the next call."""
        return stack_contexts(contexts)

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, guidance: torch.Tensor | None, contexts: ContextBatch
    ) -> torch.Tensor:
        """One forward pass.

        Args:
            latents: (rows, channels, h, w) in the transformer's dtype.
            timesteps: (rows,) float32, scaled as the checkpoint wants them.
            guidance: (rows,) float32 guidance scales for a checkpoint that embeds them, else None.
            contexts: of the same rows.

        Returns:
            The prediction, (rows, in_channels, h, w) float32; a learned variance is left out.
        """
        module = self._module
        rows, channels, tall, wide = latents.shape
        patch = self._patch
        grid = (tall // patch, wide // patch)
        x = module.patch_embed(latents)
        if guidance is None:
            modulation, embedded = module.time_embed(timesteps, batch_size=rows, hidden_dtype=x.dtype)
        else:
            scaled = guidance.to(x.dtype) * self._guidance_scale
            modulation, embedded = module.time_embed(timesteps, guidance=scaled, hidden_dtype=x.dtype)
        modulation = modulation.view(rows, 6, -1)
        for block, keys, values in zip(self._blocks, contexts.keys, contexts.values, strict=True):
            x = _block(block, x, modulation, keys, values, contexts.bias, grid)
        x = module.proj_out(module.norm_out(x, embedded, module.scale_shift_table))
        # A learned variance, if any, is the second half of the channels, and no solver here reads it.
        x = x.view(rows, *grid, patch, patch, -1)[..., :channels]
        prediction: torch.Tensor = x.permute(0, 5, 1, 3, 2, 4).reshape(rows, channels, tall, wide)
        return prediction.float()


def _block(
    block: Any,
    x: torch.Tensor,
    modulation: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    grid: tuple[int, int],
) -> torch.Tensor:
    """`SanaTransformerBlock.forward` with the text's keys and values given; x is (rows, tokens, width)."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.scale_shift_table[None] + modulation).chunk(6, dim=1)
    x = x + gate1 * block.attn1((block.norm1(x) * (1 + scale1) + shift1).to(x.dtype))
    x = _cross_attention(block.attn2, x, keys, values, bias) + x
    x = x + gate2 * _feed_forward(block.ff, block.norm2(x) * (1 + scale2) + shift2, grid)
    return x


def _cross_attention(
    attention: Any, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    query = attention.to_q(x)
    if attention.norm_q is not None:
        query = attention.norm_q(query)
    query = query.view(*x.shape[:2], attention.heads, -1).transpose(1, 2)
    seen = functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias)
    out: torch.Tensor = attention.to_out[0](seen.transpose(1, 2).flatten(2))
    return out if attention.rescale_output_factor == 1 else out / attention.rescale_output_factor


def _feed_forward(ff: Any, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """GLUMBConv on tokens: its 1x1 convolutions are matrix products, its depthwise one works on channels-last."""
    x = functional.silu(functional.linear(x, ff.conv_inverted.weight.flatten(1), ff.conv_inverted.bias))
    rows, tokens, width = x.shape
    x = ff.conv_depth(x.view(rows, *grid, width).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(rows, tokens, width)
    x, gate = x.chunk(2, dim=-1)
    return functional.linear(x * functional.silu(gate), ff.conv_point.weight.flatten(1))
