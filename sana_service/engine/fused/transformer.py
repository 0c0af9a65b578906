"""`SanaTransformer2DModel` on an accelerator.

Tokens stay (rows, tokens, channels) throughout, so a 1x1 convolution is a matrix product; queries, keys and values of a
layer are one product, and a text's keys and values of all layers another. A prompt's keys and values stand in a store
at a fixed place, padded to the longest, with each row's length beside: nothing is computed for padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from sana_service.cuda_graph import Pool
from sana_service.engine.fused.packing import packed
from sana_service.engine.fused.products import product
from sana_service.engine.graphs import Capturer, GraphSet
from sana_service.engine.kernels.attention import Layout, QkNorm, cross_attention, linear_attention
from sana_service.engine.kernels.convolutions import depthwise_glu
from sana_service.engine.kernels.norms import Modulated, add_modulate, rms_norm
from sana_service.engine.text import MAX_TOKENS
from sana_service.engine.transformer import Context, ContextBatch, SanaForward
from sana_service.models.names import Precision

# A block's table: shift, scale and gate of the self-attention, then of the feed-forward.
_SHIFT1, _SCALE1, _GATE1, _SHIFT2, _SCALE2, _GATE2 = range(6)


def can_fuse(transformer: Any) -> bool:
    """Whether the kernels fit a checkpoint."""
    config = transformer.config
    dim = config.attention_head_dim
    return (
        dim >= 16
        and dim & (dim - 1) == 0
        and not config.norm_elementwise_affine
        and config.qk_norm in (None, "rms_norm_across_heads")
        and transformer.dtype in (torch.bfloat16, torch.float32)
        and all(block.attn1.rescale_output_factor == 1 for block in transformer.transformer_blocks)
        and all(block.attn2.rescale_output_factor == 1 for block in transformer.transformer_blocks)
    )


class _Layer:
    """One block's weights as the kernels want them."""

    def __init__(self, block: Any, precision: Precision) -> None:
        attn, cross, ff = block.attn1, block.attn2, block.ff
        self.table = block.scale_shift_table.data
        self.qkv = product(*packed([attn.to_q, attn.to_k, attn.to_v]), precision)
        width = attn.to_q.weight.shape[0]
        dim = width // attn.heads
        self.layout = Layout(attn.heads, dim, dim, width, 2 * width)
        self.qk_norm = None
        if attn.norm_q is not None:
            self.qk_norm = QkNorm(attn.norm_q.weight, attn.norm_k.weight, attn.norm_q.eps)
        self.attn_out = attn.to_out[0]
        self.cross_q, self.cross_out, self.cross_heads, self.cross_norm = (
            cross.to_q, cross.to_out[0], cross.heads, cross.norm_q,
        )  # fmt: skip
        self.inverted = product(ff.conv_inverted.weight.data.flatten(1), ff.conv_inverted.bias, precision)
        depth = ff.conv_depth
        self.depth = depth.weight.data.flatten(1).t().float().contiguous(), depth.bias.data.float()
        self.point = product(ff.conv_point.weight.data.flatten(1), None, precision)
        self.eps = block.norm1.eps, block.norm2.eps


class FusedForward(SanaForward):
    """Runs one checkpoint's transformer; used by one thread, or by two of which one calls `context` alone.

    Args:
        transformer: a stock module on its device, for which `can_fuse` holds.
        capturer: of the device; None to launch each kernel by itself.
        pool: of the graphs, shared with the other checkpoint's.
        precision: of the products that take most of the time: queries, keys and values, and the feed-forward.
    """

    def __init__(
        self,
        transformer: Any,
        capturer: Capturer | None = None,
        pool: Pool | None = None,
        *,
        precision: Precision = "exact",
    ) -> None:
        super().__init__(transformer)
        self._layers = [_Layer(block, precision) for block in self._blocks]
        self._width = transformer.proj_out.in_features
        self._context_weight, self._context_bias = packed(
            [layer for block in self._blocks for layer in (block.attn2.to_k, block.attn2.to_v)]
        )
        norms = [block.attn2.norm_k for block in self._blocks]
        self._key_gains = None if norms[0] is None else torch.stack([norm.weight for norm in norms]).float()
        self._key_eps = 0.0 if norms[0] is None else norms[0].eps
        self._store: ContextBatch | None = None
        self._graphs = GraphSet(self._run, capturer, pool) if capturer is not None and pool is not None else None
        self._plain_patches = self._patch == 1 and transformer.config.interpolation_scale is None

    def context(self, states: torch.Tensor) -> Context:
        """See `SanaForward.context`; one matrix product for all layers."""
        module = self._module
        text = module.caption_norm(module.caption_projection(states.to(self.dtype)))
        both = functional.linear(text, self._context_weight, self._context_bias)
        both = both.view(len(text), len(self._layers), 2, -1)
        keys, values = both[:, :, 0], both[:, :, 1]
        if self._key_gains is not None:
            wide = keys.float()
            wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._key_eps)
            keys = (wide * self._key_gains).to(values.dtype)
        shape = (len(text), len(self._layers), self._layers[0].cross_heads, -1)
        return Context(
            keys.reshape(shape).permute(1, 2, 0, 3).contiguous(), values.reshape(shape).permute(1, 2, 0, 3).contiguous()
        )

    def reserve(self, rows: int) -> None:
        """Make room for the contexts of that many rows; graphs of a smaller store are forgotten."""
        if self._store is not None and self._store.keys.shape[1] >= rows:
            return
        if self._graphs is not None:
            self._graphs.clear()
        heads, layers = self._layers[0].cross_heads, len(self._layers)
        shape = (layers, rows, heads, MAX_TOKENS, self._width // heads)
        keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
        lengths = torch.ones(rows, dtype=torch.int32, device=self.device)
        self._store = ContextBatch(keys, torch.zeros_like(keys), None, lengths)

    def stack(self, contexts: Sequence[Context]) -> ContextBatch:
        """One row a context, in the store: the batch before is gone."""
        self.reserve(len(contexts))
        assert self._store is not None
        assert self._store.lengths is not None
        for row, context in enumerate(contexts):
            self._store.keys[:, row, :, : context.tokens].copy_(context.keys)
            self._store.values[:, row, :, : context.tokens].copy_(context.values)
            self._store.lengths[row].fill_(context.tokens)
        return self._rows(len(contexts))

    def _rows(self, rows: int) -> ContextBatch:
        store = self._store
        assert store is not None
        assert store.lengths is not None
        return ContextBatch(store.keys[:, :rows], store.values[:, :rows], None, store.lengths[:rows])

    def capture(self, rows: int, tall: int, wide: int) -> None:
        """Capture a shape before it is asked for, and wait for it."""
        if self._graphs is None:
            return
        self.reserve(rows)
        channels = self._module.config.in_channels
        latents = torch.zeros(rows, channels, tall, wide, dtype=self.dtype, device=self.device)
        numbers = torch.ones(rows, dtype=torch.float32, device=self.device)
        contexts = self._rows(rows)
        assert contexts.lengths is not None
        fresh = (latents, numbers, numbers) if self.embeds_guidance else (latents, numbers)
        waiting = self._graphs.capture(latents.shape, fresh, (contexts.keys, contexts.values, contexts.lengths))
        if waiting is not None:
            waiting.result()

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, guidance: torch.Tensor | None, contexts: ContextBatch
    ) -> torch.Tensor:
        """See `SanaForward.forward`; contexts as `stack` gave them last."""
        fresh = (latents, timesteps) if guidance is None else (latents, timesteps, guidance)
        assert contexts.lengths is not None
        fixed = (contexts.keys, contexts.values, contexts.lengths)
        if self._graphs is None:
            return self._run(*fresh, *fixed)
        return self._graphs(latents.shape, fresh, fixed)

    def _run(self, latents: torch.Tensor, timesteps: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        *guidance, keys, values, lengths = rest
        module = self._module
        rows, channels, tall, wide = latents.shape
        patch = self._patch
        grid = (tall // patch, wide // patch)
        x = self._patches(latents)
        if guidance:
            scaled = guidance[0].to(x.dtype) * self._guidance_scale
            modulation, embedded = module.time_embed(timesteps, guidance=scaled, hidden_dtype=x.dtype)
        else:
            modulation, embedded = module.time_embed(timesteps, batch_size=rows, hidden_dtype=x.dtype)
        places = [Modulated(layer.table, modulation.view(rows, 6, -1)) for layer in self._layers]
        _, normed = add_modulate(x, None, None, (places[0], _SHIFT1, _SCALE1), self._layers[0].eps[0])
        last = Modulated(module.scale_shift_table.data, embedded[:, None].expand(-1, 2, -1).contiguous())
        for number, (layer, place) in enumerate(zip(self._layers, places, strict=True)):
            assert normed is not None
            attended = linear_attention(layer.qkv(normed), layer.layout, layer.qk_norm)
            x, _ = add_modulate(x, layer.attn_out(attended), (place, _GATE1), None, 0.0)
            query = layer.cross_q(x)
            if layer.cross_norm is not None:
                norm = layer.cross_norm
                query = rms_norm(query.view(-1, self._width), norm.weight, None, norm.eps).view_as(query)
            seen = cross_attention(query, keys[number], values[number], lengths, layer.cross_heads)
            x, normed = add_modulate(x, layer.cross_out(seen), None, (place, _SHIFT2, _SCALE2), layer.eps[1])
            assert normed is not None
            hidden = layer.point(depthwise_glu(layer.inverted(normed), *layer.depth, *grid))
            if number + 1 < len(places):
                following = (places[number + 1], _SHIFT1, _SCALE1)
                x, normed = add_modulate(x, hidden, (place, _GATE2), following, self._layers[number + 1].eps[0])
            else:
                x, _ = add_modulate(x, hidden, (place, _GATE2), None, 0.0)
        _, normed = add_modulate(x, None, None, (last, 0, 1), module.norm_out.norm.eps)
        x = module.proj_out(normed).view(rows, *grid, patch, patch, -1)[..., :channels]
        prediction: torch.Tensor = x.permute(0, 5, 1, 3, 2, 4).reshape(rows, channels, tall, wide)
        return prediction.float()

    def _patches(self, latents: torch.Tensor) -> torch.Tensor:
        """(rows, tokens, width)."""
        embed = self._module.patch_embed
        if not self._plain_patches:
            patches: torch.Tensor = embed(latents)
            return patches.contiguous()
        return functional.linear(latents.flatten(2).transpose(1, 2), embed.proj.weight.flatten(1), embed.proj.bias)
