"""Against Gemma's operations written in PyTorch."""

import pytest
import torch
from torch.nn import functional

from tests.engine.kernels import DEVICE, ROUNDING, distance, normal

text = pytest.importorskip("sana_service.engine.kernels.text")


def test_rotation_puts_keys_and_values_behind_what_was_there():
    torch.manual_seed(0)
    tokens, heads, key_heads, dim, before = 5, 4, 2, 16, 3
    qkv, cosines, sines = normal(tokens, (heads + 2 * key_heads) * dim), normal(20, dim // 2), normal(20, dim // 2)
    keys, values = torch.zeros(2, key_heads, 12, dim, device=DEVICE)
    query = text.rotate(qkv, cosines, sines, keys, values, before)

    def turned(x: torch.Tensor) -> torch.Tensor:
        cosine, sine = (part[before : before + tokens, None] for part in (cosines, sines))
        low, high = x.chunk(2, -1)
        return torch.cat([low * cosine - high * sine, high * cosine + low * sine], -1)

    parts = qkv.view(tokens, -1, dim)
    assert distance(query, turned(parts[:, :heads]).transpose(0, 1)) < ROUNDING
    assert distance(keys[:, 3:8], turned(parts[:, heads : heads + key_heads]).transpose(0, 1)) < ROUNDING
    assert distance(values[:, 3:8], parts[:, heads + key_heads :].transpose(0, 1)) < ROUNDING
    assert keys[:, :3].eq(0).all()
    assert keys[:, 8:].eq(0).all()


def test_capped_softmax_is_causal():
    torch.manual_seed(1)
    scores = 30 * normal(4, 5, 8)
    seen = torch.arange(8, device=DEVICE)[None] <= 3 + torch.arange(5, device=DEVICE)[:, None]
    expected = (torch.tanh(scores * 0.3 / 5) * 5).masked_fill(~seen, float("-inf")).softmax(-1)
    assert distance(text.capped_softmax_(scores, 3, 0.3, 5.0), expected) < ROUNDING
    assert scores[:, 0, 4:].eq(0).all()


def test_gated_gelu():
    torch.manual_seed(2)
    both = 3 * normal(5, 2 * 40)
    expected = functional.gelu(both[:, :40], approximate="tanh") * both[:, 40:]
    assert distance(text.gated_gelu(both), expected) < ROUNDING
