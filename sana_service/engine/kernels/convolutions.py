"""What surrounds the matrix products and dense convolutions of pictures in channels-last order."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _silu(x):  # type: ignore[no-untyped-def]
    return x / (1.0 + tl.exp(-x))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _near(x, base, column, channel, wide, width, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """SiLU of a line at some columns; zero outside."""
    inside = ((column >= 0) & (column < width))[:, None] & wide[None, :]
    return _silu(
        tl.load(x + (base + column)[:, None] * WIDTH + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _weighted(left, middle, right, weight, channel, wide, LINE: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Three neighbours by one line of a 3x3 kernel."""
    first = tl.load(weight + (LINE * 3) * WIDTH + channel, mask=wide, other=0.0)[None, :]
    second = tl.load(weight + (LINE * 3 + 1) * WIDTH + channel, mask=wide, other=0.0)[None, :]
    third = tl.load(weight + (LINE * 3 + 2) * WIDTH + channel, mask=wide, other=0.0)[None, :]
    return left * first + middle * second + right * third


@triton.jit(do_not_specialize=["height", "width"])  # type: ignore[untyped-decorator, unused-ignore]
def _depthwise_glu(  # type: ignore[no-untyped-def]
    x, weight, bias, out, height, width, WIDTH: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr,
    LINES: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = WIDTH // 2
    block, tile, place = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    strips = tl.cdiv(height, LINES)
    row = (place // strips).to(tl.int64)
    first = (place % strips) * LINES
    column = tile * TILE + tl.arange(0, TILE)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    wide = channel < HALF
    gates = HALF + channel
    here = (column < width)[:, None] & wide[None, :]
    start = tl.load(bias + channel, mask=wide, other=0.0)[None, :]
    gate_start = tl.load(bias + gates, mask=wide, other=0.0)[None, :]
    # A line read adds to the three lines of output around it: what is read once is used three times.
    above = tl.zeros((TILE, CHANNELS), tl.float32)
    current = tl.zeros((TILE, CHANNELS), tl.float32)
    gate_above = tl.zeros((TILE, CHANNELS), tl.float32)
    gate_current = tl.zeros((TILE, CHANNELS), tl.float32)
    for step in range(0, LINES + 2):
        line = first - 1 + step
        base = (row * height + line) * width
        seen = wide & (line >= 0) & (line < height)
        left = _near(x, base, column - 1, channel, seen, width, WIDTH)
        middle = _near(x, base, column, channel, seen, width, WIDTH)
        right = _near(x, base, column + 1, channel, seen, width, WIDTH)
        done = start + above + _weighted(left, middle, right, weight, channel, wide, 2, WIDTH)
        above = current + _weighted(left, middle, right, weight, channel, wide, 1, WIDTH)
        current = _weighted(left, middle, right, weight, channel, wide, 0, WIDTH)
        left = _near(x, base, column - 1, gates, seen, width, WIDTH)
        middle = _near(x, base, column, gates, seen, width, WIDTH)
        right = _near(x, base, column + 1, gates, seen, width, WIDTH)
        gate = gate_start + gate_above + _weighted(left, middle, right, weight, gates, wide, 2, WIDTH)
        gate_above = gate_current + _weighted(left, middle, right, weight, gates, wide, 1, WIDTH)
        gate_current = _weighted(left, middle, right, weight, gates, wide, 0, WIDTH)
        target = ((row * height + line - 1) * width + column)[:, None] * HALF + channel[None, :]
        writes = here & (step >= 2) & (line - 1 < height)
        tl.store(out + target, (done * _silu(gate)).to(out.dtype.element_ty), mask=writes)


def depthwise_glu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The middle of Sana's feed-forward: SiLU, a 3x3 depthwise convolution, and its first half gated by the second.

    Args:
        x: (rows, height * width, channels), contiguous, before its SiLU.
        weight: (9, channels) float32, line by line.
        bias: (channels,) float32.

    Returns:
        (rows, height * width, channels / 2).
    """
    rows, tokens, channels = x.shape
    out = torch.empty(rows, tokens, channels // 2, dtype=x.dtype, device=x.device)
    lines, tile, block = 16, 8, 64
    grid = (triton.cdiv(channels // 2, block), triton.cdiv(width, tile), rows * triton.cdiv(height, lines))
    _depthwise_glu[grid](
        x, weight, bias, out, height, width, WIDTH=channels, TILE=tile, CHANNELS=block, LINES=lines, num_warps=4
    )
    return out


@triton.jit(do_not_specialize=["height", "width"])  # type: ignore[untyped-decorator, unused-ignore]
def _depthwise_grouped(  # type: ignore[no-untyped-def]
    x, weight, point, out, height, width, WIDTH: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    group, line, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = (line // height).to(tl.int64)
    line = line % height
    column = tile * TILE + tl.arange(0, TILE)
    inner = tl.arange(0, GROUP)
    channel = group * GROUP + inner
    total = tl.zeros((TILE, GROUP), tl.float32)
    for slot in tl.static_range(SIZE * SIZE):
        near_line, near = line + slot // SIZE - SIZE // 2, column + slot % SIZE - SIZE // 2
        inside = (near >= 0) & (near < width) & (near_line >= 0) & (near_line < height)
        place = ((row * height + near_line) * width + near)[:, None] * WIDTH + channel[None, :]
        value = tl.load(x + place, mask=inside[:, None], other=0.0).to(tl.float32)
        total += value * tl.load(weight + slot * WIDTH + channel)[None, :]
    matrix = tl.load(point + (group * GROUP + inner[:, None]) * GROUP + inner[None, :])
    result = tl.dot(total.to(matrix.dtype), matrix, input_precision="ieee")
    place = ((row * height + line) * width + column)[:, None] * WIDTH + channel[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=(column < width)[:, None])


def depthwise_grouped(
    x: torch.Tensor, weight: torch.Tensor, point: torch.Tensor, size: int, height: int, width: int
) -> torch.Tensor:
    """A depthwise convolution, then a 1x1 one within groups of channels; neither has a bias.

    Args:
        x: (rows, height * width, channels), contiguous.
        weight: (size * size, channels) float32.
        point: (groups, inputs, outputs) in x's dtype, as many inputs as outputs, a power of two of 16 or more.
        size: odd side of the depthwise kernel.

    Returns:
        Like x.
    """
    rows, _, channels = x.shape
    groups, inner, _ = point.shape
    out = torch.empty_like(x)
    tile = 32
    _depthwise_grouped[(groups, rows * height, triton.cdiv(width, tile))](
        x, weight, point, out, height, width, WIDTH=channels, SIZE=size, GROUP=inner, TILE=tile, num_warps=4
    )
    return out


@triton.jit(do_not_specialize=["total"])  # type: ignore[untyped-decorator, unused-ignore]
def _bias_silu(x, bias, total, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + tl.load(bias + place % WIDTH)
    tl.store(x + place, _silu(value).to(x.dtype.element_ty), mask=inside)


def bias_silu_(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """SiLU of x plus its channels' bias, in place.

    Args:
        x: any shape whose memory ends in the channels.
        bias: (channels,) float32.
    """
    block = 2048
    _bias_silu[(triton.cdiv(x.numel(), block),)](x, bias, x.numel(), WIDTH=len(bias), BLOCK=block, num_warps=8)
    return x


@triton.jit(do_not_specialize=["height", "width"])  # type: ignore[untyped-decorator, unused-ignore]
def _add_shortcut(  # type: ignore[no-untyped-def]
    fine, bias, coarse, height, width, FINE: tl.constexpr, COARSE: tl.constexpr, REPEATS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64)
    column, line = pixel % (2 * width), pixel // (2 * width)
    row, line = line // (2 * height), line % (2 * height)
    channel = tl.arange(0, BLOCK)
    inside = channel < FINE
    source = (channel * 4 + (line % 2) * 2 + column % 2) // REPEATS
    parent = (row * height + line // 2) * width + column // 2
    value = tl.load(fine + pixel * FINE + channel, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + channel, mask=inside, other=0.0)
    value += tl.load(coarse + parent * COARSE + source, mask=inside, other=0.0).to(tl.float32)
    tl.store(fine + pixel * FINE + channel, value.to(fine.dtype.element_ty), mask=inside)


def add_shortcut_(
    fine: torch.Tensor, bias: torch.Tensor, coarse: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """DC-AE's way around an upsampling convolution (arXiv 2410.10733, section 3.2), and that one's bias; in place.

    Args:
        fine: (rows, 2 height, 2 width, channels), contiguous.
        bias: (channels,) float32.
        coarse: (rows, height, width, more channels), contiguous; each is repeated, then shuffled to four pixels.
    """
    rows, _, _, channels = fine.shape
    _add_shortcut[(rows * 4 * height * width,)](
        fine, bias, coarse, height, width,
        FINE=channels, COARSE=coarse.shape[3], REPEATS=channels * 4 // coarse.shape[3],
        BLOCK=triton.next_power_of_2(channels), num_warps=max(1, min(4, channels // 128)),
    )  # fmt: skip
    return fine
