"""DC-AE's decoder (arXiv 2410.10733) on an accelerator.

Pictures stay (rows, height, width, channels) in memory: dense convolutions are cuDNN's in channels-last, 1x1 ones are
matrix products, and norms, activations, residuals and shortcuts between them are one pass each. A layer that is not
built as expected runs as the stock module does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import DCUpBlock2d, EfficientViTBlock, ResBlock
from torch.nn import functional

from sana_service.cuda_graph import Pool
from sana_service.engine.fused.packing import packed
from sana_service.engine.graphs import Capturer, GraphSet
from sana_service.engine.kernels.attention import Layout, linear_attention
from sana_service.engine.kernels.convolutions import (
    ToPlanes,
    bias_silu_,
    depthwise_glu,
    depthwise_grouped,
    join_phases,
)
from sana_service.engine.kernels.norms import rms_norm

Layer = Callable[[torch.Tensor], torch.Tensor]
"""From and to (rows, height, width, channels), contiguous."""


class FusedDecoder:
    """Runs one VAE's decoder; used by one thread.

    Args:
        vae: DC-AE on its device.
        capturer: of the device; None to launch each kernel by itself.
        pool: of the graphs.
    """

    def __init__(self, vae: Any, capturer: Capturer | None = None, pool: Pool | None = None) -> None:
        vae.decoder.to(memory_format=torch.channels_last)
        self._vae = vae
        decoder = vae.decoder
        self._decoder = decoder
        self._layers = [fused(layer) for block in reversed(decoder.up_blocks) for layer in block]
        last = decoder.conv_out
        self._to_planes = ToPlanes(last.weight.data, last.bias) if ToPlanes.fits(last) else None
        self._graphs = (
            GraphSet(self._run, capturer, pool, most=8) if capturer is not None and pool is not None else None
        )

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the decoder wants them, (rows, channels, h, w), to pictures (rows, 3, 32 h, 32 w) in float32."""
        if self._graphs is None:
            return self._run(latents)
        return self._graphs(latents.shape, (latents,))

    def capture(self, tall: int, wide: int) -> None:
        """Capture a shape before it is asked for, and wait for it."""
        if self._graphs is None:
            return
        shape = (1, self._vae.config.latent_channels, tall, wide)
        latents = torch.zeros(shape, dtype=self._vae.dtype, device=self._vae.device)
        waiting = self._graphs.capture(latents.shape, (latents,))
        if waiting is not None:
            waiting.result()

    def _run(self, latents: torch.Tensor) -> torch.Tensor:
        decoder = self._decoder
        x = latents.contiguous(memory_format=torch.channels_last)
        start = decoder.conv_in(x)
        if decoder.in_shortcut:
            repeats = decoder.in_shortcut_repeats
            start = start + x.repeat_interleave(repeats, dim=1, output_size=x.shape[1] * repeats)
        x = _tokens_last(start)
        for layer in self._layers:
            x = layer(x)
        norm = decoder.norm_out
        relu = isinstance(decoder.conv_act, torch.nn.ReLU)
        x = rms_norm(x.view(-1, x.shape[3]), norm.weight, norm.bias, norm.eps, relu=relu).view_as(x)
        if relu and self._to_planes is not None:
            return self._to_planes(x)
        picture = x.permute(0, 3, 1, 2)
        if not relu:
            picture = decoder.conv_act(picture)
        # In NCHW order: what follows works on whole channels.
        result: torch.Tensor = decoder.conv_out(picture)
        return result.float().contiguous()


def fused(layer: Any) -> Layer:
    """A layer's fused form where there is one."""
    if isinstance(layer, ResBlock) and layer.norm_type == "rms_norm" and isinstance(layer.nonlinearity, torch.nn.SiLU):
        return _Residual(layer)
    if (
        isinstance(layer, DCUpBlock2d)
        and layer.interpolate
        and layer.shortcut
        and layer.interpolation_mode == "nearest"
    ):
        return _Upsample(layer)
    if isinstance(layer, EfficientViTBlock) and _has_fused_attention(layer.attn):
        return _Transformer(layer)
    return lambda x: _tokens_last(layer(x.permute(0, 3, 1, 2)))


def _tokens_last(x: torch.Tensor) -> torch.Tensor:
    """(rows, channels, h, w) in whatever order to contiguous (rows, h, w, channels)."""
    return x.permute(0, 2, 3, 1).contiguous()


class _Convolution:
    """A dense convolution without its bias."""

    def __init__(self, layer: torch.nn.Conv2d) -> None:
        self._layer = layer
        self.bias = None if layer.bias is None else layer.bias.data.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        # What comes out of a channels-last convolution is contiguous that way round.
        y = functional.conv2d(x.permute(0, 3, 1, 2), self._layer.weight, None, padding=self._layer.padding)
        return _tokens_last(y)


class _Residual:
    """`ResBlock`: convolution, SiLU, convolution, RMS norm, residual."""

    def __init__(self, layer: Any) -> None:
        self._first, self._second, self._norm = _Convolution(layer.conv1), _Convolution(layer.conv2), layer.norm

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        assert self._first.bias is not None
        y = self._second(bias_silu_(self._first(x), self._first.bias))
        width, norm = x.shape[3], self._norm
        y = rms_norm(y.view(-1, width), norm.weight, norm.bias, norm.eps, residual=x.view(-1, width))
        return y.view_as(x)


class _Upsample:
    """`DCUpBlock2d`: nearest neighbours, convolution, and the shuffled way around them.

    A fine pixel's 3x3 neighbours are copies of four coarse pixels, so the convolution of the enlarged picture is, for
    each of the four places of a pixel in its parent, a 2x2 convolution of the coarse one with sums of the weights.
    """

    def __init__(self, layer: Any) -> None:
        weight = layer.conv.weight.data.float()
        # Which of a window's two lines (columns) each of the kernel's three falls on, for even and odd pixels.
        falls = torch.tensor(
            [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float32, device=weight.device
        )
        phases = torch.einsum("ocij,pyi,qxj->pqocyx", weight, falls, falls).flatten(0, 2)
        self._weight = phases.to(layer.conv.weight.dtype).contiguous(memory_format=torch.channels_last)
        self._bias = layer.conv.bias.data.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        phases = functional.conv2d(x.permute(0, 3, 1, 2), self._weight, None, padding=1)
        return join_phases(_tokens_last(phases), self._bias, x)


def _has_fused_attention(attention: Any) -> bool:
    dim = attention.attention_head_dim
    return (
        attention.norm_type == "rms_norm"
        and attention.residual_connection
        and isinstance(attention.nonlinearity, torch.nn.ReLU)
        and dim >= 16
        and dim & (dim - 1) == 0
        and attention.to_q.out_features == attention.to_q.in_features
        and all(scale.proj_in.kernel_size == (5, 5) for scale in attention.to_qkv_multiscale)
    )


class _Transformer:
    """`EfficientViTBlock`: multi-scale ReLU linear attention, then the gated depthwise feed-forward."""

    def __init__(self, layer: Any) -> None:
        attention, ff = layer.attn, layer.conv_out
        self._layer = layer
        self._qkv, _ = packed([attention.to_q, attention.to_k, attention.to_v])
        self._dim = attention.attention_head_dim
        self._scales = [
            (
                scale.proj_in.weight.data.flatten(1).t().float().contiguous(),
                # (outputs, inputs) of each group to (group, inputs, outputs)
                scale.proj_out.weight.data.flatten(1).view(-1, self._dim, self._dim).transpose(1, 2).contiguous(),
            )
            for scale in attention.to_qkv_multiscale
        ]
        self._attention_out, self._attention_norm = attention.to_out.weight, attention.norm_out
        self._inverted = ff.conv_inverted.weight.data.flatten(1), ff.conv_inverted.bias
        depth = ff.conv_depth
        self._depth = depth.weight.data.flatten(1).t().float().contiguous(), depth.bias.data.float()
        self._point, self._norm = ff.conv_point.weight.data.flatten(1), ff.norm

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows, height, width, channels = x.shape
        if height * width <= self._dim:
            # The stock module attends quadratically to so few.
            return _tokens_last(self._layer(x.permute(0, 3, 1, 2)))
        tokens = x.view(rows, height * width, channels)
        scales = [functional.linear(tokens, self._qkv)]
        for depth, point in self._scales:
            scales.append(depthwise_grouped(scales[0], depth, point, height, width))
        heads = channels // self._dim
        attended = torch.empty(rows, height * width, channels * len(scales), dtype=x.dtype, device=x.device)
        layout = Layout(heads, self._dim, 3 * self._dim, self._dim, 2 * self._dim)
        for qkv, part in zip(scales, torch.split(attended, channels, dim=2), strict=True):
            linear_attention(qkv, layout, out=part)
        norm = self._attention_norm
        seen = functional.linear(attended, self._attention_out).view(-1, channels)
        flat = rms_norm(seen, norm.weight, norm.bias, norm.eps, residual=x.view(-1, channels))
        hidden = functional.linear(flat.view_as(tokens), *self._inverted)
        hidden = functional.linear(depthwise_glu(hidden, *self._depth, height, width), self._point)
        norm = self._norm
        return rms_norm(hidden.view(-1, channels), norm.weight, norm.bias, norm.eps, residual=flat).view_as(x)
