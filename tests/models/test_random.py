"""Random weights in the full-size architecture: the published sizes, seeded, finite, usable by the engine."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import accelerate  # type: ignore[import-untyped]
import diffusers
import pytest
import torch
import transformers

from sana_service.models.architecture import FULL_SIZE
from sana_service.models.checkpoint import Models
from sana_service.models.instruction import human_instruction
from sana_service.models.random import random_models, random_tokenizer
from tests.pairs import DIFFUSERS_WARNS, job, local_engine

NARROW = replace(
    FULL_SIZE,
    base={
        **FULL_SIZE.base,
        "num_attention_heads": 2,
        "num_layers": 3,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 32,
        "cross_attention_dim": 64,
        "caption_channels": 64,
    },
    sprint={
        **FULL_SIZE.sprint,
        "num_attention_heads": 2,
        "num_layers": 3,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 32,
        "cross_attention_dim": 64,
        "caption_channels": 64,
    },
    vae={
        **FULL_SIZE.vae,
        "encoder_block_out_channels": (16, 16, 16, 32, 32, 32),
        "decoder_block_out_channels": (16, 16, 16, 32, 32, 32),
        "encoder_layers_per_block": (1,) * 6,
        "decoder_layers_per_block": (1,) * 6,
    },
    text_encoder={
        **FULL_SIZE.text_encoder,
        "vocab_size": 2048,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "head_dim": 16,
    },
)


def build(seed: int = 0, dtype: torch.dtype = torch.float32) -> Models:
    return random_models(torch.device("cpu"), dtype, seed=seed, architecture=NARROW)


@pytest.fixture(scope="module")
def models() -> Models:
    return build()


def modules(models: Models) -> list[Any]:
    base, sprint = models.checkpoints["base"], models.checkpoints["sprint"]
    return [models.text_encoder, base.transformer, sprint.transformer, base.vae]


def test_the_architecture_has_the_published_numbers_of_parameters():
    """1.6 billion for each transformer, Gemma 2 2B without its head, DC-AE f32c32 (reference 5.7)."""

    def count(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    library: Any = diffusers
    with accelerate.init_empty_weights():
        assert count(library.SanaTransformer2DModel(**FULL_SIZE.base)) == 1_604_462_752
        assert count(library.SanaTransformer2DModel(**FULL_SIZE.sprint)) == 1_610_237_472
        assert count(library.AutoencoderDC(**FULL_SIZE.vae)) == 312_250_275
        text_encoder: Any = transformers.Gemma2Model(transformers.Gemma2Config(**FULL_SIZE.text_encoder))
        assert count(text_encoder) == 2_614_341_888


def test_it_warns_loudly(caplog):
    with caplog.at_level(logging.WARNING, logger="sana.models"):
        build()
    assert "RANDOM WEIGHTS" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_has_a_value_in_the_precision_asked_for(dtype):
    for module in modules(build(dtype=dtype)):
        for name, parameter in module.named_parameters():
            assert parameter.dtype == dtype, name
            assert parameter.device.type == "cpu"
            assert torch.isfinite(parameter).all(), name
        assert not any(buffer.is_meta for buffer in module.buffers())


def test_the_seed_decides_the_weights(models):
    for one, same, other in zip(modules(models), modules(build()), modules(build(seed=1)), strict=True):
        weights = one.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in same.state_dict().items())
        assert any(not torch.equal(weights[name], tensor) for name, tensor in other.state_dict().items())


def test_the_text_encoders_buffers_are_those_of_a_plainly_built_one(models):
    """Rotary frequencies are no weights: they must survive the building without memory."""
    plain: Any = transformers.Gemma2Model(transformers.Gemma2Config(**NARROW.text_encoder))
    ours = dict(models.text_encoder.named_buffers())
    assert ours.keys() == dict(plain.named_buffers()).keys()
    for name, buffer in plain.named_buffers():
        assert torch.equal(ours[name], buffer), name


@DIFFUSERS_WARNS
def test_both_models_draw_finite_noise_of_the_size_asked_for(models):
    engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=4)
    engine.start()
    for model in ("base", "sprint"):
        artifact = engine.submit(job(model=model, width=512, height=512)).result(timeout=60)
        assert artifact.pixels.shape == (1, 512, 512, 3)
        assert artifact.pixels.std() > 10
    assert engine.stop()


def test_the_instruction_is_about_as_long_as_gemma_makes_it():
    """200 to 220 tokens by estimate (reference 5.5), so that timing the text encoder means something."""
    tokenizer = random_tokenizer()
    assert 195 <= len(tokenizer.encode(human_instruction())) <= 225
    ids = tokenizer("a red xylophone, 日本")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 2
    assert tokenizer.unk_token_id not in ids
    assert len(tokenizer) < FULL_SIZE.text_encoder["vocab_size"]
    assert tokenizer.padding_side == "right"
