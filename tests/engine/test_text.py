"""Embeddings against `encode_prompt` of the stock pipelines."""

from __future__ import annotations

import pytest
import torch

from sana_service.engine.text import PromptEncoder

PROMPTS = [
    "A small red circle",
    "",
    "   A  SMALL Red circle\n\n",
    "été, 日本語, 🦀 and a lone \u0301",
    "user prompt: user prompt: ",
    " ".join(f"word{i}" for i in range(600)),
]


@pytest.fixture(scope="module")
def encoder(models) -> PromptEncoder:
    return PromptEncoder(models.tokenizer, models.text_encoder)


@pytest.mark.parametrize("pipeline", ["base", "sprint"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_positive_is_stocks_with_the_human_instruction(prompt, pipeline, encoder, stock):
    import inspect

    pipe = getattr(stock, pipeline)
    lines = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
    with torch.no_grad():
        states, mask = pipe.encode_prompt(prompt, complex_human_instruction=lines)[:2]
        ours = encoder.positive(prompt)
    tokens = int(mask.sum())
    assert ours.shape == (tokens, 32)
    torch.testing.assert_close(ours, states[0, :tokens], atol=1e-6, rtol=0)
    assert mask[0, :tokens].all()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_negative_is_stocks_without_it(prompt, encoder, stock):
    with torch.no_grad():
        states, mask = stock.base.encode_prompt("x", True, negative_prompt=prompt)[2:]
        ours = encoder.negative(prompt)
    tokens = int(mask.sum())
    assert ours.shape == (tokens, 32)
    torch.testing.assert_close(ours, states[0, :tokens], atol=1e-6, rtol=0)
    assert mask[0, :tokens].all()


def test_case_and_outer_blanks_do_not_count(encoder):
    with torch.no_grad():
        one, other = encoder.positive(" A Red CIRCLE "), encoder.positive("a red circle")
        different = encoder.positive("a blue circle")
    assert torch.equal(one, other)
    assert not torch.allclose(one, different, atol=1e-3)


def test_a_long_prompt_fills_the_mask_and_is_cut(encoder):
    with torch.no_grad():
        long, longer = encoder.positive("word " * 500), encoder.positive("word " * 900)
    assert len(long) == 300
    assert torch.equal(long, longer)
