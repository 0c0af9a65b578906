"""Attention: ReLU linear attention of tokens among themselves, softmax attention from tokens to a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

_TOKENS_PER_SPLIT = 512
_TILE = 64
_EPS = 1e-15


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator, unused-ignore]
def _inverse_rms(  # type: ignore[no-untyped-def]
    qkv, out, tokens, eps, STRIDE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    value = tl.load(qkv + token * STRIDE + part * WIDTH + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + token * 2 + part, 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / WIDTH + eps))


@triton.jit(do_not_specialize=["tokens", "splits", "per_split"])  # type: ignore[untyped-decorator, unused-ignore]
def _sums(  # type: ignore[no-untyped-def]
    qkv, inverse, weight, states, keys, tokens, splits, per_split,
    STRIDE: tl.constexpr, HEAD: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, DIM: tl.constexpr,
    TILE: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    head, row, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    heads = tl.num_programs(0)
    channels = tl.arange(0, DIM)
    state = tl.zeros((DIM, DIM), tl.float32)
    total = tl.zeros((DIM,), tl.float32)
    if NORMED:
        gain = tl.load(weight + head * DIM + channels).to(tl.float32)
    last = tl.minimum(tokens, (split + 1) * per_split)
    for start in range(split * per_split, last, TILE):
        there = start + tl.arange(0, TILE)
        inside = (there < last)[:, None]
        place = qkv + (row * tokens + there)[:, None] * STRIDE + head * HEAD + channels[None, :]
        key = tl.load(place + KEY, mask=inside, other=0.0)
        if NORMED:
            scale = tl.load(inverse + (row * tokens + there) * 2 + 1, mask=there < last, other=0.0)
            key = (key.to(tl.float32) * scale[:, None] * gain[None, :]).to(qkv.dtype.element_ty)
        key = tl.maximum(key, 0.0).to(qkv.dtype.element_ty)
        value = tl.load(place + VALUE, mask=inside, other=0.0)
        state = tl.dot(tl.trans(key), value, state, input_precision="ieee")
        total += tl.sum(key.to(tl.float32), axis=0)
    number = (row * heads + head) * splits + split
    tl.store(states + number * DIM * DIM + channels[:, None] * DIM + channels[None, :], state)
    tl.store(keys + number * DIM + channels, total)


@triton.jit(do_not_specialize=["tokens", "splits"])  # type: ignore[untyped-decorator, unused-ignore]
def _apply(  # type: ignore[no-untyped-def]
    qkv, inverse, weight, states, keys, out, tokens, splits, eps,
    STRIDE: tl.constexpr, HEAD: tl.constexpr, DIM: tl.constexpr, OUT_STRIDE: tl.constexpr,
    TILE: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(0)
    channels = tl.arange(0, DIM)
    state = tl.zeros((DIM, DIM), tl.float32)
    total = tl.zeros((DIM,), tl.float32)
    for split in range(0, splits):
        number = (row * heads + head) * splits + split
        state += tl.load(states + number * DIM * DIM + channels[:, None] * DIM + channels[None, :])
        total += tl.load(keys + number * DIM + channels)
    there = tl.program_id(2) * TILE + tl.arange(0, TILE)
    inside = (there < tokens)[:, None]
    place = qkv + (row * tokens + there)[:, None] * STRIDE + head * HEAD + channels[None, :]
    query = tl.load(place, mask=inside, other=0.0)
    if NORMED:
        gain = tl.load(weight + head * DIM + channels).to(tl.float32)
        scale = tl.load(inverse + (row * tokens + there) * 2, mask=there < tokens, other=0.0)
        query = (query.to(tl.float32) * scale[:, None] * gain[None, :]).to(qkv.dtype.element_ty)
    query = tl.maximum(query, 0.0).to(tl.float32)
    result = tl.dot(query, state, input_precision="tf32x3")
    result = result / (tl.sum(query * total[None, :], axis=1) + eps)[:, None]
    target = out + (row * tokens + there)[:, None] * OUT_STRIDE + head * DIM + channels[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Layout:
    """Where a head's query, key and value stand among a token's channels.

    Args:
        heads: how many.
        dim: channels of each, a power of two of 16 or more.
        head: from one head to the next.
        key, value: from a head's query to its key and value.
    """

    heads: int
    dim: int
    head: int
    key: int
    value: int


@dataclass(frozen=True, eq=False)
class QkNorm:
    """RMS norms over all heads' queries and keys; for a layout with the queries first and the keys after them.

    Args:
        query, key: (heads * dim,) gains.
        eps: of both.
    """

    query: torch.Tensor
    key: torch.Tensor
    eps: float


def linear_attention(
    qkv: torch.Tensor, layout: Layout, norm: QkNorm | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """ReLU linear attention (Sana, arXiv 2410.10629, section 3.2; Katharopoulos et al. 2020, eq. 5), not causal.

    Args:
        qkv: (rows, tokens, channels), contiguous.
        out: (rows, tokens, heads * dim), its tokens any constant distance apart.

    Returns:
        out, new where none is given.
    """
    rows, tokens, stride = qkv.shape
    width = layout.heads * layout.dim
    if out is None:
        out = torch.empty(rows, tokens, width, dtype=qkv.dtype, device=qkv.device)
    splits = triton.cdiv(tokens, _TOKENS_PER_SPLIT)
    # A power of two: the tiles of a split never reach into the next.
    per_split = triton.cdiv(triton.cdiv(tokens, splits), _TILE) * _TILE
    count = rows * layout.heads * splits
    states = torch.empty(count, layout.dim, layout.dim, dtype=torch.float32, device=qkv.device)
    keys = torch.empty(count, layout.dim, dtype=torch.float32, device=qkv.device)
    inverse: torch.Tensor = keys
    if norm is not None:
        inverse = torch.empty(rows * tokens, 2, dtype=torch.float32, device=qkv.device)
        _inverse_rms[(rows * tokens, 2)](
            qkv, inverse, tokens, norm.eps, STRIDE=stride, WIDTH=width, BLOCK=triton.next_power_of_2(width),
            num_warps=8 if width > 1024 else 4,
        )  # fmt: skip
    shared = {"STRIDE": stride, "HEAD": layout.head, "DIM": layout.dim, "TILE": _TILE, "NORMED": norm is not None}
    _sums[(layout.heads, rows, splits)](
        qkv, inverse, qkv if norm is None else norm.key, states, keys, tokens, splits, per_split,
        KEY=layout.key, VALUE=layout.value, **shared, num_warps=4,
    )  # fmt: skip
    _apply[(layout.heads, rows, triton.cdiv(tokens, _TILE))](
        qkv, inverse, qkv if norm is None else norm.query, states, keys, out, tokens, splits, _EPS,
        OUT_STRIDE=out.stride(1), **shared, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens", "longest"])  # type: ignore[untyped-decorator, unused-ignore]
def _cross(  # type: ignore[no-untyped-def]
    query, keys, values, lengths, out, tokens, longest, row_stride, scale,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    tile, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    there = tile * TILE + tl.arange(0, TILE)
    channels = tl.arange(0, BLOCK)
    wide = channels < DIM
    places = ((row * tokens + there)[:, None] * HEADS + head) * DIM + channels[None, :]
    inside = (there < tokens)[:, None] & wide[None, :]
    q = tl.load(query + places, mask=inside, other=0.0)
    length = tl.load(lengths + row)
    base = row * row_stride + head.to(tl.int64) * longest * DIM
    top = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    result = tl.zeros((TILE, BLOCK), tl.float32)
    for start in range(0, length, KEYS):
        number = start + tl.arange(0, KEYS)
        seen = number < length
        place = base + number[:, None] * DIM + channels[None, :]
        key = tl.load(keys + place, mask=seen[:, None] & wide[None, :], other=0.0)
        value = tl.load(values + place, mask=seen[:, None] & wide[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        shrink = tl.exp2(top - new_top)
        weights = tl.exp2(scores - new_top[:, None])
        total = total * shrink + tl.sum(weights, axis=1)
        result = result * shrink[:, None]
        result = tl.dot(weights.to(value.dtype), value, result, input_precision="ieee")
        top = new_top
    tl.store(out + places, (result / total[:, None]).to(out.dtype.element_ty), mask=inside)


def cross_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor, heads: int
) -> torch.Tensor:
    """Softmax attention to each row's text.

    Args:
        query: (rows, tokens, heads * dim), contiguous.
        keys, values: (rows, heads, longest, dim), a row's part contiguous.
        lengths: (rows,) int32, how many of a row's keys count; at least 1.

    Returns:
        Like query.
    """
    rows, tokens, width = query.shape
    dim = width // heads
    out = torch.empty_like(query)
    block = max(16, triton.next_power_of_2(dim))
    _cross[(triton.cdiv(tokens, _TILE), heads, rows)](
        query, keys, values, lengths, out, tokens, keys.shape[2], keys.stride(0), dim**-0.5 * 1.4426950408889634,
        HEADS=heads, DIM=dim, BLOCK=block, TILE=_TILE, KEYS=64, num_warps=4,
    )  # fmt: skip
    return out
