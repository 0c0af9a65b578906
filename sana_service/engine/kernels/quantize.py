"""Rows as 8-bit floating point codes with a scale each."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

LARGEST = 448.0
"""Of the codes' format, e4m3 without infinities (arXiv 2209.05433, table 1)."""

SMALLEST_SCALE = 1e-12


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _quantize_rows(  # type: ignore[no-untyped-def]
    x, codes, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    value = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=0) / LARGEST, SMALLEST)
    # A maximum leaves NaN out.
    scale += tl.sum(tl.where(value == value, 0.0, value), axis=0)  # noqa: PLR0124
    tl.store(scales + row, scale)
    tl.store(codes + row * WIDTH + columns, (value / scale).to(codes.dtype.element_ty), mask=inside)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row divided by a scale of its own, such that its largest value is the format's largest.

    Args:
        x: (..., width), contiguous.

    Returns:
        Codes (rows, width) float8_e4m3fn and scales (rows, 1) float32, whose product is about x. A row that is not
        finite has a scale that is not.
    """
    width = x.shape[-1]
    rows = x.numel() // width
    codes = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    _quantize_rows[(rows,)](
        x, codes, scales, WIDTH=width, BLOCK=block, LARGEST=LARGEST, SMALLEST=SMALLEST_SCALE,
        num_warps=8 if block > 2048 else 4,
    )  # fmt: skip
    return codes, scales
