"""Against PyTorch's own norms."""

import pytest
import torch
from torch.nn import functional

from tests.engine.kernels import ROUNDING, distance, normal

norms = pytest.importorskip("sana_service.engine.kernels.norms")


def test_a_gated_sum_and_its_modulated_norm():
    torch.manual_seed(0)
    x, delta, table, modulation = normal(2, 5, 48), normal(2, 5, 48), normal(6, 48), normal(2, 6, 48)
    place, slots = norms.Modulated(table, modulation), table[None] + modulation
    summed, normed = norms.add_modulate(x, delta, (place, 2), (place, 3, 4), 1e-6)
    expected = x + slots[:, 2:3] * delta
    assert distance(summed, expected) < ROUNDING
    modulated = functional.layer_norm(expected, (48,), eps=1e-6) * (1 + slots[:, 4:5]) + slots[:, 3:4]
    assert distance(normed, modulated) < ROUNDING


def test_a_plain_sum_has_no_norm():
    torch.manual_seed(1)
    x, delta = normal(1, 3, 20), normal(1, 3, 20)
    summed, normed = norms.add_modulate(x, delta, None, None, 1e-6)
    assert distance(summed, x + delta) < ROUNDING
    assert normed is None


@pytest.mark.parametrize("relu", [False, True])
def test_rms_norm_of_rows_apart_from_each_other(relu: bool):
    torch.manual_seed(2)
    x, weight, bias, residual = normal(7, 80)[:, :40], normal(40), normal(40), normal(7, 40)
    expected = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5) * weight + bias + residual
    result = norms.rms_norm(x, weight, bias, 1e-5, residual=residual, relu=relu)
    assert distance(result, expected.relu() if relu else expected) < ROUNDING


def test_gemmas_end_and_beginning_of_a_layer():
    torch.manual_seed(3)
    x, delta, first, second = normal(6, 40), normal(6, 40), normal(40), normal(40)

    def gemma(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + weight)

    summed, normed = norms.add_rms_norms(x, delta, first, second, 1e-6)
    assert distance(summed, x + gemma(delta, first)) < ROUNDING
    assert distance(normed, gemma(x + gemma(delta, first), second)) < ROUNDING
