"""Several layers' weights as one matrix, without a second copy of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def packed(layers: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of linear layers below each other: (all outputs, inputs) and their biases, if any.

    The layers keep working: their parameters become views of the result.

    Raises:
        ValueError: some have a bias and some do not.
    """
    weight = torch.cat([layer.weight.data for layer in layers])
    biases = [layer.bias for layer in layers]
    if any((bias is None) != (biases[0] is None) for bias in biases):
        raise ValueError("layers with and without a bias cannot be packed")
    bias = None if biases[0] is None else torch.cat([bias.data for bias in biases])
    for layer, part in zip(layers, torch.split(weight, [layer.weight.shape[0] for layer in layers]), strict=True):
        layer.weight.data = part
    if bias is not None:
        for layer, part in zip(layers, torch.split(bias, [len(layer.bias) for layer in layers]), strict=True):
            layer.bias.data = part
    return weight, bias
