"""Matrix products of linear layers, exact and with 8-bit floating point numbers."""

from __future__ import annotations

import torch
from torch.nn import functional

from sana_service.engine.kernels.quantize import LARGEST, SMALLEST_SCALE, quantize_rows
from sana_service.models.names import Precision

_MULTIPLE = 16
"""Of widths that the devices' 8-bit products take."""


class Product:
    """x @ weight.T + bias, rounded as PyTorch does.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,) or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs)."""
        return functional.linear(x, self._weight, self._bias)


class Fp8Product(Product):
    """The same, each token and each output rounded to e4m3 with a scale of its own; sums are exact to float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        wide = weight.float()
        scales = (wide.abs().amax(1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
        self._codes, self._scales = (wide / scales).to(torch.float8_e4m3fn).t(), scales.t()
        self._narrow_bias = None if bias is None else bias.to(torch.bfloat16)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs), contiguous, to (..., outputs)."""
        codes, scales = quantize_rows(x)
        out = torch._scaled_mm(
            codes, self._codes, scale_a=scales, scale_b=self._scales, bias=self._narrow_bias,
            out_dtype=torch.bfloat16, use_fast_accum=True,
        )  # fmt: skip
        return out.view(*x.shape[:-1], -1).to(x.dtype)


def product(weight: torch.Tensor, bias: torch.Tensor | None, precision: Precision) -> Product:
    """A linear layer as the precision asks; exact where its widths do not fit 8-bit products."""
    fits = all(width % _MULTIPLE == 0 for width in weight.shape)
    return Fp8Product(weight, bias) if precision == "fp8" and fits else Product(weight, bias)
