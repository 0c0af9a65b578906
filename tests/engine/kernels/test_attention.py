"""Against the formulas written out: ReLU linear attention, and PyTorch's softmax attention with a mask."""

import pytest
import torch
from torch.nn import functional

from tests.engine.kernels import DEVICE, ROUNDING, distance, normal

attention = pytest.importorskip("sana_service.engine.kernels.attention")

ROWS, TOKENS, HEADS, DIM = 2, 70, 2, 16


def linear(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """sum_j phi(q_i) phi(k_j) v_j / sum_j phi(q_i) phi(k_j), term by term."""
    query, key, value = (x.view(ROWS, TOKENS, HEADS, DIM).transpose(1, 2) for x in (query.relu(), key.relu(), value))
    weights = query @ key.transpose(2, 3)
    seen = weights @ value / (weights.sum(-1, keepdim=True) + 1e-15)
    return seen.transpose(1, 2).reshape(ROWS, TOKENS, -1)


def rms(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * gain


@pytest.fixture(params=[64, 512], ids=["in two parts", "in one"])
def split(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(attention, "_TOKENS_PER_SPLIT", request.param)
    return int(request.param)


def test_linear_attention(split: int):
    torch.manual_seed(0)
    qkv = normal(ROWS, TOKENS, 3 * HEADS * DIM)
    layout = attention.Layout(HEADS, DIM, DIM, HEADS * DIM, 2 * HEADS * DIM)
    assert distance(attention.linear_attention(qkv, layout), linear(*qkv.chunk(3, -1))) < ROUNDING


def test_linear_attention_with_normed_queries_and_keys(split: int):
    torch.manual_seed(1)
    qkv, for_queries, for_keys = normal(ROWS, TOKENS, 3 * HEADS * DIM), normal(HEADS * DIM), normal(HEADS * DIM)
    layout = attention.Layout(HEADS, DIM, DIM, HEADS * DIM, 2 * HEADS * DIM)
    result = attention.linear_attention(qkv, layout, attention.QkNorm(for_queries, for_keys, 1e-5))
    query, key, value = qkv.chunk(3, -1)
    assert distance(result, linear(rms(query, for_queries), rms(key, for_keys), value)) < ROUNDING


def test_linear_attention_of_interleaved_heads_into_a_part():
    torch.manual_seed(2)
    qkv = normal(ROWS, TOKENS, 3 * HEADS * DIM)
    both = torch.zeros(ROWS, TOKENS, 2 * HEADS * DIM, device=DEVICE)
    attention.linear_attention(qkv, attention.Layout(HEADS, DIM, 3 * DIM, DIM, 2 * DIM), out=both[:, :, HEADS * DIM :])
    apart = qkv.view(ROWS, TOKENS, HEADS, 3, DIM).unbind(3)
    expected = linear(*(part.reshape(ROWS, TOKENS, -1) for part in apart))
    assert distance(both[:, :, HEADS * DIM :], expected) < ROUNDING
    assert both[:, :, : HEADS * DIM].eq(0).all()


def test_cross_attention_sees_each_rows_own_words_alone():
    torch.manual_seed(3)
    query, keys, values = normal(ROWS, TOKENS, 2 * 24), normal(ROWS, 2, 70, 24), normal(ROWS, 2, 70, 24)
    lengths = torch.tensor([70, 5], dtype=torch.int32, device=DEVICE)
    result = attention.cross_attention(query, keys, values, lengths, 2)
    mask = (torch.arange(70, device=DEVICE)[None] < lengths[:, None])[:, None, None]
    heads = query.view(ROWS, TOKENS, 2, 24).transpose(1, 2)
    expected = functional.scaled_dot_product_attention(heads, keys, values, attn_mask=mask)
    assert distance(result, expected.transpose(1, 2).reshape(ROWS, TOKENS, -1)) < ROUNDING
    keys[1, :, 5:] = float("nan")
    assert torch.equal(attention.cross_attention(query, keys, values, lengths, 2), result)
