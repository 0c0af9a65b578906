"""The transformer's 3x3 depthwise convolution as two Triton kernels, for an accelerator only.

Tokens are rows of one table (see `fast.py`), so a window is nine gathers. Written in PyTorch each is a pass over device
memory; here a program keeps its tile, and the nine gathers hit the caches. `fast.Depthwise` is the same function in
PyTorch, and `check` compares the two.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from sana_service.models.bundled.training import fast

TILE, CHANNELS = 128, 32


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _forward_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, index, out, width, TILE: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = columns < width
    total = tl.zeros((TILE, CHANNELS), tl.float32) + tl.load(bias + columns, mask=valid, other=0.0).to(tl.float32)
    for slot in tl.static_range(9):
        near = tl.load(index + rows * 9 + slot)
        inside = (near >= 0)[:, None] & valid[None, :]
        value = tl.load(x + near[:, None] * width + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        total += value * tl.load(weight + slot * width + columns, mask=valid, other=0.0).to(tl.float32)[None, :]
    tl.store(out + rows[:, None] * width + columns[None, :], total.to(out.dtype.element_ty), mask=valid[None, :])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _backward_kernel(  # type: ignore[no-untyped-def]
    gradient, x, weight, index, by_x, partial, width, TILE: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = columns < width
    own = rows[:, None] * width + columns[None, :]
    value = tl.load(x + own, mask=valid[None, :], other=0.0).to(tl.float32)
    total = tl.zeros((TILE, CHANNELS), tl.float32)
    sums = partial + tl.program_id(0) * 10 * width + columns
    for slot in tl.static_range(9):
        # Whose left neighbour this token is stands on its right: slot s is slot 8 - s of the gradient.
        near = tl.load(index + rows * 9 + 8 - slot)
        inside = (near >= 0)[:, None] & valid[None, :]
        there = tl.load(gradient + near[:, None] * width + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        total += there * tl.load(weight + slot * width + columns, mask=valid, other=0.0).to(tl.float32)[None, :]
        tl.store(sums + slot * width, tl.sum(there * value, axis=0), mask=valid)
    here = tl.load(gradient + own, mask=valid[None, :], other=0.0).to(tl.float32)
    tl.store(sums + 9 * width, tl.sum(here, axis=0), mask=valid)
    tl.store(by_x + own, total.to(by_x.dtype.element_ty), mask=valid[None, :])


@torch.library.custom_op("bundled::depthwise", mutates_args=())
def depthwise(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor) -> Tensor:
    """3x3 depthwise convolution over a neighbour table.

    Args:
        x: (rows, channels), rows a multiple of 128.
        weight: (9, channels) float32.
        bias: (channels,) float32.
        index: (rows, 9) int32, -1 for none; symmetric, as a grid's is.
    """
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, width = x.shape
    grid = (rows // TILE, triton.cdiv(width, CHANNELS))
    _forward_kernel[grid](x, weight.contiguous(), bias, index, out, width, TILE, CHANNELS)
    return out


@depthwise.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("bundled::depthwise_backward", mutates_args=())
def depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of x, and (rows / 128, 10, channels) float32 partial gradients of weight and, in the last row, bias."""
    gradient, x = gradient.contiguous(), x.contiguous()
    rows, width = x.shape
    by_x = torch.empty_like(x)
    partial = torch.empty(rows // TILE, 10, width, dtype=torch.float32, device=x.device)
    grid = (rows // TILE, triton.cdiv(width, CHANNELS))
    _backward_kernel[grid](gradient, x, weight.contiguous(), index, by_x, partial, width, TILE, CHANNELS)
    return by_x, partial


@depthwise_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    by_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return by_x, x.new_empty(x.shape[0] // TILE, 10, x.shape[1], dtype=torch.float32)


def _keep(ctx, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:  # type: ignore[no-untyped-def]
    x, weight, _, index = inputs
    ctx.save_for_backward(x, weight, index)


def _backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[no-untyped-def]
    x, weight, index = ctx.saved_tensors
    by_x, partial = depthwise_backward(gradient, x, weight, index)
    total = partial.sum(0)
    return by_x, total[:9], total[9], None


depthwise.register_autograd(_backward, setup_context=_keep)


def block_forward(*arguments: Tensor) -> Tensor:
    """`fast.block_forward` with the kernels."""
    return fast.block_forward(*arguments, depthwise=depthwise)


def check(index: Tensor, channels: int, dtype: torch.dtype) -> float:
    """Largest relative difference, in output and gradients, from `fast.Depthwise` in float32 on random numbers.

    Args:
        index: (rows, 9) int32.
        channels: of the convolution.
        dtype: of the kernels' input.
    """
    where, rows = index.device, len(index)
    x, weight, bias, gradient = (
        torch.randn(*shape, device=where) for shape in ((rows, channels), (9, channels), (channels,), (rows, channels))
    )
    results = []
    for function, kind in ((fast.Depthwise.apply, torch.float32), (depthwise, dtype)):
        inputs = [x.to(kind, copy=True), weight.clone(), bias.clone()]
        for tensor in inputs:
            tensor.requires_grad_()
        out = function(*inputs, index)
        out.backward(gradient.to(kind))
        results.append([out.detach(), *(tensor.grad for tensor in inputs)])
    return max(float((b - a).norm() / a.norm()) for a, b in zip(*results, strict=True))
