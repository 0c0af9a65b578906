"""What stands between Gemma 2's matrix products: rotary positions, capped softmax, gated GELU."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]


@triton.jit(do_not_specialize=["before", "room"])  # type: ignore[untyped-decorator, unused-ignore]
def _rotate(  # type: ignore[no-untyped-def]
    qkv, cosines, sines, query, keys, values, before, room,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    DIM: tl.constexpr = 2 * HALF
    channel = tl.arange(0, HALF)
    source = qkv + token * ((HEADS + 2 * KEY_HEADS) * DIM) + head * DIM
    low, high = tl.load(source + channel), tl.load(source + HALF + channel)
    if head < HEADS + KEY_HEADS:
        cosine = tl.load(cosines + (before + token) * HALF + channel)
        sine = tl.load(sines + (before + token) * HALF + channel)
        left, right = low.to(tl.float32), high.to(tl.float32)
        low = (left * cosine - right * sine).to(qkv.dtype.element_ty)
        high = (right * cosine + left * sine).to(qkv.dtype.element_ty)
    if head < HEADS:
        target = query + (head * tl.num_programs(0) + token) * DIM
    elif head < HEADS + KEY_HEADS:
        target = keys + ((head - HEADS) * room + before + token) * DIM
    else:
        target = values + ((head - HEADS - KEY_HEADS) * room + before + token) * DIM
    tl.store(target + channel, low)
    tl.store(target + HALF + channel, high)


def rotate(
    qkv: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    before: int,
) -> torch.Tensor:
    """Apply rotary positions (Su et al., arXiv 2104.09864; halves, not pairs), and put keys and values in their places.

    Args:
        qkv: (tokens, (heads + 2 key heads) * dim), contiguous.
        cosines, sines: (positions, dim / 2) float32.
        keys, values: (key heads, room, dim), contiguous; filled from `before` on.
        before: position of the first token.

    Returns:
        The queries, (heads, tokens, dim).
    """
    key_heads, room, dim = keys.shape
    tokens, width = qkv.shape
    heads = width // dim - 2 * key_heads
    query = torch.empty(heads, tokens, dim, dtype=qkv.dtype, device=qkv.device)
    _rotate[(tokens, heads + 2 * key_heads)](
        qkv, cosines, sines, query, keys, values, before, room,
        HEADS=heads, KEY_HEADS=key_heads, HALF=dim // 2, num_warps=1,
    )  # fmt: skip
    return query


@triton.jit(do_not_specialize=["tokens", "before", "total"])  # type: ignore[untyped-decorator, unused-ignore]
def _capped_softmax(scores, tokens, before, total, scale, cap, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    line = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < total
    value = tl.load(scores + line * total + column, mask=inside, other=0.0).to(tl.float32) * scale
    # tanh by exponentials of a negative number, which cannot overflow
    decay = tl.exp(-2.0 * tl.abs(value) / cap)
    size = cap * (1.0 - decay) / (1.0 + decay)
    value = tl.where(value < 0, -size, size)
    value = tl.where(column <= before + line % tokens, value, float("-inf"))
    weight = tl.exp(value - tl.max(value, axis=0))
    weight = weight / tl.sum(weight, axis=0)
    tl.store(scores + line * total + column, weight.to(scores.dtype.element_ty), mask=inside)


def capped_softmax_(scores: torch.Tensor, before: int, scale: float, cap: float) -> torch.Tensor:
    """Causal softmax of scores that tanh keeps within a cap (Gemma 2, arXiv 2408.00118, section 2), in place.

    Args:
        scores: (heads, tokens, total), contiguous; token i sees the first before + i + 1.
        before: how many tokens came before the first.
        scale: of the raw scores.
        cap: of the scaled ones.
    """
    heads, tokens, total = scores.shape
    _capped_softmax[(heads * tokens,)](
        scores, tokens, before, total, scale, cap, BLOCK=triton.next_power_of_2(total), num_warps=4
    )
    return scores


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _gated_gelu(both, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    source = both + token * 2 * WIDTH + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(source + WIDTH, mask=inside, other=0.0).to(tl.float32)
    # gelu with tanh is x times the logistic function of twice the argument
    argument = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    result = gate / (1.0 + tl.exp(-argument)) * value
    tl.store(out + token * WIDTH + column, result.to(out.dtype.element_ty), mask=inside)


def gated_gelu(both: torch.Tensor) -> torch.Tensor:
    """GELU (tanh form, Hendrycks and Gimpel, arXiv 1606.08415) of the first half of the channels, times the second.

    Args:
        both: (tokens, 2 * width), contiguous.

    Returns:
        (tokens, width).
    """
    tokens, width = both.shape[0], both.shape[1] // 2
    out = torch.empty(tokens, width, dtype=both.dtype, device=both.device)
    block = 1024
    _gated_gelu[(triton.cdiv(width, block), tokens)](both, out, WIDTH=width, BLOCK=block, num_warps=4)
    return out
