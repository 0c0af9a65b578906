"""Norms over the last axis, with the residual, the gate and the modulation around them."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator, unused-ignore]
def _add_modulate(  # type: ignore[no-untyped-def]
    x, delta, delta_table, delta_modulation, norm_table, norm_modulation, summed, out,
    tokens, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GATE: tl.constexpr, SHIFT: tl.constexpr, SCALE: tl.constexpr,
    SLOTS: tl.constexpr, HAS_DELTA: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row = token // tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    value = tl.load(x + token * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        step = tl.load(delta + token * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        if GATE >= 0:
            gate = tl.load(delta_table + GATE * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
            gate += tl.load(delta_modulation + (row * SLOTS + GATE) * WIDTH + columns, mask=inside, other=0.0).to(
                tl.float32
            )
            step = step * gate
        value = (value + step).to(summed.dtype.element_ty)
        tl.store(summed + token * WIDTH + columns, value, mask=inside)
        value = value.to(tl.float32)
    if HAS_NORM:
        mean = tl.sum(value, axis=0) / WIDTH
        centred = tl.where(inside, value - mean, 0.0)
        spread = tl.sum(centred * centred, axis=0) / WIDTH
        shift = tl.load(norm_table + SHIFT * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        shift += tl.load(norm_modulation + (row * SLOTS + SHIFT) * WIDTH + columns, mask=inside, other=0.0).to(
            tl.float32
        )
        scale = tl.load(norm_table + SCALE * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        scale += tl.load(norm_modulation + (row * SLOTS + SCALE) * WIDTH + columns, mask=inside, other=0.0).to(
            tl.float32
        )
        normed = centred * (1.0 / tl.sqrt(spread + eps)) * (1.0 + scale) + shift
        tl.store(out + token * WIDTH + columns, normed.to(out.dtype.element_ty), mask=inside)


class Modulated:
    """A place where a table of shifts, scales and gates meets those of the timestep.

    Args:
        table: (slots, width) of the layer.
        modulation: (rows, slots, width) of the timestep.
    """

    __slots__ = ("modulation", "table")

    def __init__(self, table: torch.Tensor, modulation: torch.Tensor) -> None:
        self.table, self.modulation = table, modulation


def add_modulate(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    gate: tuple[Modulated, int] | None,
    norm: tuple[Modulated, int, int] | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """X + gate * delta, and its layer norm times (1 + scale) plus shift.

    Args:
        x: (rows, tokens, width).
        delta: likewise, or None for x itself.
        gate: where its gate stands, and in which slot; None for 1.
        norm: where shift and scale stand, and in which slots; None for no norm.
        eps: of the norm, which has no weights of its own.

    Returns:
        The sum (x itself without a delta) and the modulated norm, or None; both like x.
    """
    rows, tokens, width = x.shape
    summed = torch.empty_like(x) if delta is not None else x
    out = torch.empty_like(x) if norm is not None else x
    gate_place = gate[0] if gate is not None else None
    norm_place = norm[0] if norm is not None else None
    slots = next((place.table.shape[0] for place in (gate_place, norm_place) if place is not None), 1)
    _add_modulate[(rows * tokens,)](
        x, x if delta is None else delta,
        *((gate_place.table, gate_place.modulation) if gate_place else (x, x)),
        *((norm_place.table, norm_place.modulation) if norm_place else (x, x)),
        summed, out, tokens, eps,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), SLOTS=slots,
        GATE=-1 if gate is None else gate[1],
        SHIFT=0 if norm is None else norm[1], SCALE=0 if norm is None else norm[2],
        HAS_DELTA=delta is not None, HAS_NORM=norm is not None,
        num_warps=8 if width > 1024 else 4,
    )  # fmt: skip
    return summed, out if norm is not None else None


@triton.jit(do_not_specialize=["total"])  # type: ignore[untyped-decorator, unused-ignore]
def _rms_norm(  # type: ignore[no-untyped-def]
    x, residual, weight, bias, out, total, eps, one_plus,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, STRIDE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    columns = tl.arange(0, BLOCK)
    wide = columns < WIDTH
    inside = (rows < total)[:, None] & wide[None, :]
    value = tl.load(x + rows[:, None] * STRIDE + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    power = tl.sum(value * value, axis=1) / WIDTH
    gain = one_plus + tl.load(weight + columns, mask=wide, other=0.0).to(tl.float32)
    value = value * (1.0 / tl.sqrt(power + eps))[:, None] * gain[None, :]
    if HAS_BIAS:
        value += tl.load(bias + columns, mask=wide, other=0.0).to(tl.float32)[None, :]
    places = rows[:, None] * WIDTH + columns[None, :]
    if HAS_RESIDUAL:
        value += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    tl.store(out + places, value.to(out.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
    one_plus: bool = False,
    relu: bool = False,
) -> torch.Tensor:
    """RMS norm over the last axis, plus a residual.

    Args:
        x: (rows, width), its rows any constant distance apart.
        weight, bias: (width,).
        residual: (rows, width) contiguous, added to the normed values.
        one_plus: the gain is 1 + weight (Gemma).
        relu: last of all.

    Returns:
        (rows, width) contiguous.
    """
    rows, width = x.shape
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    tile = max(1, 2048 // block)
    _rms_norm[(triton.cdiv(rows, tile),)](
        x, out if residual is None else residual, weight, weight if bias is None else bias, out, rows, eps,
        1.0 if one_plus else 0.0,
        WIDTH=width, BLOCK=block, TILE=tile, STRIDE=x.stride(0),
        HAS_RESIDUAL=residual is not None, HAS_BIAS=bias is not None, RELU=relu,
        num_warps=8 if block > 2048 else 4,
    )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _add_rms_norms(  # type: ignore[no-untyped-def]
    x, delta, delta_weight, norm_weight, summed, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    step = tl.load(delta + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    gain = 1.0 + tl.load(delta_weight + columns, mask=inside, other=0.0).to(tl.float32)
    step = step * (1.0 / tl.sqrt(tl.sum(step * step, axis=0) / WIDTH + eps)) * gain
    value = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32) + step
    value = value.to(summed.dtype.element_ty)
    tl.store(summed + row * WIDTH + columns, value, mask=inside)
    value = value.to(tl.float32)
    gain = 1.0 + tl.load(norm_weight + columns, mask=inside, other=0.0).to(tl.float32)
    value = value * (1.0 / tl.sqrt(tl.sum(value * value, axis=0) / WIDTH + eps)) * gain
    tl.store(out + row * WIDTH + columns, value.to(out.dtype.element_ty), mask=inside)


def add_rms_norms(
    x: torch.Tensor, delta: torch.Tensor, delta_weight: torch.Tensor, norm_weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gemma's end of a sub-layer and beginning of the next: x + norm(delta), and the norm of that sum.

    Args:
        x, delta: (rows, width) contiguous.
        delta_weight, norm_weight: (width,); gains are one more.
    """
    rows, width = x.shape
    summed, out = torch.empty_like(x), torch.empty_like(x)
    _add_rms_norms[(rows,)](
        x, delta, delta_weight, norm_weight, summed, out, eps,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip
    return summed, out
