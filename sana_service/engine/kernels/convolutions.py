"""What surrounds the matrix products and dense convolutions of pictures in channels-last order."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _silu(x):  # type: ignore[no-untyped-def]
    return x / (1.0 + tl.exp(-x))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _moved(tile, by: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile's columns moved left by `by`, zeros behind: a product with ones and zeros, and so exact."""
    place = tl.arange(0, TILE)
    ones = (place[None, :] == place[:, None] + by).to(tile.dtype)
    return tl.dot(ones, tile, input_precision="ieee")


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _silu_all(x, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    BLOCKS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    # One axis: the others end at 65,535, and a picture of 2048x2048 has more tokens where the decoder attends.
    token, block = tl.program_id(0) // BLOCKS, tl.program_id(0) % BLOCKS
    # A mask of constants leaves accesses wide; one that compares with a run-time length would not.
    column = block * BLOCK + tl.arange(0, BLOCK)
    place = x + token.to(tl.int64) * WIDTH + column
    value = tl.load(place, mask=column < WIDTH, other=0.0).to(tl.float32)
    tl.store(place, _silu(value).to(x.dtype.element_ty), mask=column < WIDTH)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _near(line, column, channel, seen, width, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """A line at some columns; zero outside."""
    inside = ((column >= 0) & (column < width))[:, None] & seen[None, :]
    return tl.load(line + column[:, None] * WIDTH + channel[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _row(weight, channel, wide, SLOT: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """One tap's weights."""
    return tl.load(weight + SLOT * WIDTH + channel, mask=wide, other=0.0)[None, :]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _depthwise(  # type: ignore[no-untyped-def]
    x, weight, bias, first, column, channel, wide, height, width, WIDTH: tl.constexpr, LINE: tl.constexpr
):  # fmt: skip
    """A 3x3 depthwise convolution of one line, `LINE` below the first; x: of the picture."""
    total = tl.load(bias + channel, mask=wide, other=0.0)[None, :]
    for tall in tl.static_range(3):
        line = first + LINE + tall - 1
        seen = wide & (line >= 0) & (line < height)
        base = x + line.to(tl.int64) * width * WIDTH
        total += _near(base, column - 1, channel, seen, width, WIDTH) * _row(weight, channel, wide, 3 * tall, WIDTH)
        total += _near(base, column, channel, seen, width, WIDTH) * _row(weight, channel, wide, 3 * tall + 1, WIDTH)
        total += _near(base, column + 1, channel, seen, width, WIDTH) * _row(weight, channel, wide, 3 * tall + 2, WIDTH)
    return total


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
    here = (column < width)[:, None] & wide[None, :]
    picture = x + row * height * width * WIDTH
    target = out + row * height * width * HALF
    # Lines are finished before any is written, so that what two of them read, and all weights, are read once.
    value0 = _depthwise(picture, weight, bias, first, column, channel, wide, height, width, WIDTH, 0)
    value1 = _depthwise(picture, weight, bias, first, column, channel, wide, height, width, WIDTH, 1)
    value2 = _depthwise(picture, weight, bias, first, column, channel, wide, height, width, WIDTH, 2)
    value3 = _depthwise(picture, weight, bias, first, column, channel, wide, height, width, WIDTH, 3)
    gates = HALF + channel
    gate0 = _depthwise(picture, weight, bias, first, column, gates, wide, height, width, WIDTH, 0)
    gate1 = _depthwise(picture, weight, bias, first, column, gates, wide, height, width, WIDTH, 1)
    gate2 = _depthwise(picture, weight, bias, first, column, gates, wide, height, width, WIDTH, 2)
    gate3 = _depthwise(picture, weight, bias, first, column, gates, wide, height, width, WIDTH, 3)
    places = column[:, None] * HALF + channel[None, :]
    line = target + first.to(tl.int64) * width * HALF
    tl.store(line + places, (value0 * _silu(gate0)).to(out.dtype.element_ty), mask=here)
    line += width * HALF
    tl.store(line + places, (value1 * _silu(gate1)).to(out.dtype.element_ty), mask=here & (first + 1 < height))
    line += width * HALF
    tl.store(line + places, (value2 * _silu(gate2)).to(out.dtype.element_ty), mask=here & (first + 2 < height))
    line += width * HALF
    tl.store(line + places, (value3 * _silu(gate3)).to(out.dtype.element_ty), mask=here & (first + 3 < height))


def depthwise_glu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The middle of Sana's feed-forward: SiLU, a 3x3 depthwise convolution, and its first half gated by the second.

    Args:
        x: (rows, height * width, channels), contiguous, before its SiLU, and after it when this returns: a pass of its
            own is cheaper than the exponentials of values that are read several times.
        weight: (9, channels) float32, line by line.
        bias: (channels,) float32.

    Returns:
        (rows, height * width, channels / 2).
    """
    rows, tokens, channels = x.shape
    _silu_all[(rows * tokens * triton.cdiv(channels, 2048),)](x, WIDTH=channels, BLOCK=2048, num_warps=4)
    out = torch.empty(rows, tokens, channels // 2, dtype=x.dtype, device=x.device)
    lines, tile, block = 4, 8, 64
    grid = (triton.cdiv(channels // 2, block), triton.cdiv(width, tile), rows * triton.cdiv(height, lines))
    _depthwise_glu[grid](
        x, weight, bias, out, height, width, WIDTH=channels, TILE=tile, CHANNELS=block, LINES=lines, num_warps=4
    )
    return out


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _weighted5(a, b, c, d, e, weight, channel, LINE: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Five neighbours by one line of a 5x5 kernel."""
    place = weight + LINE * 5 * WIDTH + channel
    return (
        a * tl.load(place)[None, :]
        + b * tl.load(place + WIDTH)[None, :]
        + c * tl.load(place + 2 * WIDTH)[None, :]
        + d * tl.load(place + 3 * WIDTH)[None, :]
        + e * tl.load(place + 4 * WIDTH)[None, :]
    )


@triton.jit(do_not_specialize=["height", "width"])  # type: ignore[untyped-decorator, unused-ignore]
def _depthwise_grouped(  # type: ignore[no-untyped-def]
    x, weight, point, out, height, width, WIDTH: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr,
    LINES: tl.constexpr,
):  # fmt: skip
    group, tile, place = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    strips = tl.cdiv(height, LINES)
    row = (place // strips).to(tl.int64)
    first = (place % strips) * LINES
    start_column = tile * (TILE - 4)
    column = start_column + tl.arange(0, TILE)
    inner = tl.arange(0, GROUP)
    channel = group * GROUP + inner
    own = (column > start_column + 1) | (start_column == 0)
    own = own & ((column < start_column + TILE - 2) | (start_column + TILE >= width)) & (column < width)
    matrix = tl.load(point + (group * GROUP + inner[:, None]) * GROUP + inner[None, :])
    # As in `_depthwise_glu`; sums of the lines that are not finished, the oldest first.
    oldest = tl.zeros((TILE, GROUP), tl.float32)
    older = tl.zeros((TILE, GROUP), tl.float32)
    newer = tl.zeros((TILE, GROUP), tl.float32)
    newest = tl.zeros((TILE, GROUP), tl.float32)
    for step in range(0, LINES + 4):
        line = first - 2 + step
        inside = ((column < width) & (line >= 0) & (line < height))[:, None]
        source = ((row * height + line) * width + column)[:, None] * WIDTH + channel[None, :]
        value = tl.load(x + source, mask=inside, other=0.0)
        a, b, c = _moved(value, -2, TILE), _moved(value, -1, TILE), _moved(value, 0, TILE)
        d, e = _moved(value, 1, TILE), _moved(value, 2, TILE)
        done = oldest + _weighted5(a, b, c, d, e, weight, channel, 4, WIDTH)
        oldest = older + _weighted5(a, b, c, d, e, weight, channel, 3, WIDTH)
        older = newer + _weighted5(a, b, c, d, e, weight, channel, 2, WIDTH)
        newer = newest + _weighted5(a, b, c, d, e, weight, channel, 1, WIDTH)
        newest = _weighted5(a, b, c, d, e, weight, channel, 0, WIDTH)
        if (step >= 4) & (line - 2 < height):
            result = tl.dot(done.to(matrix.dtype), matrix, input_precision="ieee")
            target = ((row * height + line - 2) * width + column)[:, None] * WIDTH + channel[None, :]
            tl.store(out + target, result.to(out.dtype.element_ty), mask=own[:, None])


def depthwise_grouped(
    x: torch.Tensor, weight: torch.Tensor, point: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """A 5x5 depthwise convolution, then a 1x1 one within groups of channels; neither has a bias.

    Args:
        x: (rows, height * width, channels), contiguous.
        weight: (25, channels) float32, line by line.
        point: (groups, inputs, outputs) in x's dtype, as many inputs as outputs, a power of two of 16 or more.

    Returns:
        Like x.
    """
    rows, _, channels = x.shape
    groups, inner, _ = point.shape
    out = torch.empty_like(x)
    lines, tile = 16, 32
    tiles = 1 if width <= tile else triton.cdiv(width - 4, tile - 4)
    _depthwise_grouped[(groups, tiles, rows * triton.cdiv(height, lines))](
        x, weight, point, out, height, width, WIDTH=channels, GROUP=inner, TILE=tile, LINES=lines, num_warps=4
    )
    return out


@triton.jit(do_not_specialize=["total"])  # type: ignore[untyped-decorator, unused-ignore]
def _bias_silu(x, bias, total, WIDTH: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    columns = tl.arange(0, BLOCK)
    wide = columns < WIDTH
    inside = (rows < total)[:, None] & wide[None, :]
    place = x + rows[:, None] * WIDTH + columns[None, :]
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + columns, mask=wide, other=0.0)[None, :]
    tl.store(place, _silu(value).to(x.dtype.element_ty), mask=inside)


def bias_silu_(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """SiLU of x plus its channels' bias, in place.

    Args:
        x: any shape whose memory ends in the channels.
        bias: (channels,) float32.
    """
    width = len(bias)
    rows, block = x.numel() // width, triton.next_power_of_2(width)
    tile = max(1, 4096 // block)
    _bias_silu[(triton.cdiv(rows, tile),)](x, bias, rows, WIDTH=width, BLOCK=block, TILE=tile, num_warps=8)
    return x


@triton.jit(do_not_specialize=["height", "width"])  # type: ignore[untyped-decorator, unused-ignore]
def _join_phases(  # type: ignore[no-untyped-def]
    phases, bias, coarse, fine, height, width, FINE: tl.constexpr, COARSE: tl.constexpr, REPEATS: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(1)
    row = (line // (2 * height)).to(tl.int64)
    line = line % (2 * height)
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    channel = tl.arange(0, BLOCK)
    inside = (column < 2 * width)[:, None] & (channel < FINE)[None, :]
    right, below = column % 2, line % 2
    window = (row * (height + 1) + line // 2 + below) * (width + 1) + column // 2 + right
    phase = below * 2 + right
    source = (window * (4 * FINE) + phase * FINE)[:, None] + channel[None, :]
    value = tl.load(phases + source, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + channel, mask=channel < FINE, other=0.0)[None, :]
    parent = (row * height + line // 2) * width + column // 2
    shuffled = (channel[None, :] * 4 + phase[:, None]) // REPEATS
    value += tl.load(coarse + (parent * COARSE)[:, None] + shuffled, mask=inside, other=0.0).to(tl.float32)
    target = (((row * 2 * height + line) * 2 * width + column) * FINE)[:, None] + channel[None, :]
    tl.store(fine + target, value.to(fine.dtype.element_ty), mask=inside)


def join_phases(phases: torch.Tensor, bias: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Four interleaved pictures as one of twice the side, plus DC-AE's way around it (arXiv 2410.10733, section 3.2).

    Args:
        phases: (rows, height + 1, width + 1, 4 channels), contiguous: for each 2x2 window of the padded coarse picture
            the pixels that see it, at even and odd places of even lines, then of odd lines.
        bias: (channels,) float32.
        coarse: (rows, height, width, more channels), contiguous; each is repeated, then shuffled to four pixels.

    Returns:
        (rows, 2 height, 2 width, channels).
    """
    rows, height, width, wide = coarse.shape
    channels = len(bias)
    fine = torch.empty(rows, 2 * height, 2 * width, channels, dtype=phases.dtype, device=phases.device)
    block = triton.next_power_of_2(channels)
    tile = max(1, 2048 // block)
    _join_phases[(triton.cdiv(2 * width, tile), rows * 2 * height)](
        phases, bias, coarse, fine, height, width,
        FINE=channels, COARSE=wide, REPEATS=channels * 4 // wide, BLOCK=block, TILE=tile, num_warps=4,
    )  # fmt: skip
    return fine


_PLANES = 16
"""Width that a matrix product of Triton has at least."""


@triton.jit(do_not_specialize=["height", "width"])  # type: ignore[untyped-decorator, unused-ignore]
def _to_planes(  # type: ignore[no-untyped-def]
    x, weight, bias, out, height, width, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, MOST: tl.constexpr,
    PLANES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(1)
    row = (line // height).to(tl.int64)
    line = line % height
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    channel = tl.arange(0, BLOCK)
    plane = tl.arange(0, MOST)
    total = tl.zeros((TILE, MOST), tl.float32)
    for tap in tl.static_range(9):
        near, at = line + tap // 3 - 1, column + tap % 3 - 1
        inside = (near >= 0) & (near < height) & (at >= 0) & (at < width)
        source = ((row * height + near) * width + at)[:, None] * CHANNELS + channel[None, :]
        value = tl.load(x + source, mask=inside[:, None] & (channel < CHANNELS)[None, :], other=0.0)
        taps = tl.load(weight + (tap * BLOCK + channel[:, None]) * MOST + plane[None, :])
        total += tl.dot(value, taps, input_precision="ieee")
    total += tl.load(bias + plane)[None, :]
    target = ((row * PLANES + plane[None, :]) * height + line) * width + column[:, None]
    tl.store(out + target, total, mask=(column < width)[:, None] & (plane < PLANES)[None, :])


class ToPlanes:
    """A 3x3 convolution to a few channels, such as a picture's three, in float32 and each channel by itself.

    Args:
        weight: (planes, channels, 3, 3), at most 16 planes.
        bias: (planes,) or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.planes, self.channels = weight.shape[:2]
        self._block = max(16, triton.next_power_of_2(self.channels))
        self._weight = weight.new_zeros(9, self._block, _PLANES)
        self._weight[:, : self.channels, : self.planes] = weight.flatten(2).permute(2, 1, 0)
        self._bias = torch.zeros(_PLANES, dtype=torch.float32, device=weight.device)
        if bias is not None:
            self._bias[: self.planes] = bias

    @staticmethod
    def fits(layer: torch.nn.Module) -> bool:
        """Whether a layer is such a convolution."""
        return (
            type(layer) is torch.nn.Conv2d
            and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
            and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
            and layer.out_channels <= _PLANES
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, height, width, channels), contiguous, to (rows, planes, height, width); sums are not rounded."""
        rows, height, width, _ = x.shape
        out = torch.empty(rows, self.planes, height, width, dtype=torch.float32, device=x.device)
        tile = 128
        _to_planes[(triton.cdiv(width, tile), rows * height)](
            x, self._weight, self._bias, out, height, width,
            CHANNELS=self.channels, BLOCK=self._block, MOST=_PLANES, PLANES=self.planes, TILE=tile, num_warps=4,
        )  # fmt: skip
        return out
