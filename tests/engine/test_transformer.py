"""Our forward pass against the stock module's, for every kind of configuration a Sana checkpoint can have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SanaTransformer2DModel

from sana_service.engine.transformer import Context, SanaForward, stack_contexts

TINY: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 4,
    "cross_attention_dim": 16,
    "caption_channels": 12,
    "sample_size": 8,
}
TOKENS = 20


def build(**changes: Any) -> SanaTransformer2DModel:
    """Weights large enough that every part shows in the output."""
    torch.manual_seed(0)
    module = SanaTransformer2DModel(**{**TINY, **changes}).eval().requires_grad_(False)
    for name, weight in module.named_parameters():
        if "scale_shift_table" in name or "norm" in name or name.endswith("bias"):
            weight.copy_(1 + 0.5 * torch.randn_like(weight))
    return module


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"patch_size": 2},
    {"interpolation_scale": 1},
    {"interpolation_scale": 2, "patch_size": 2},
    {"qk_norm": "rms_norm_across_heads"},
    {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True, "guidance_embeds_scale": 0.3},
    {"attention_bias": True},
    {"norm_elementwise_affine": True},
    {"mlp_ratio": 3.0, "out_channels": 8},
    {"caption_channels": 7, "in_channels": 5, "out_channels": 5},
]


@torch.no_grad()
@pytest.mark.parametrize("changes", CONFIGURATIONS, ids=str)
def test_rows_of_unlike_prompts_and_times_are_the_stock_forward(changes):
    module = build(**changes)
    rows, lengths = 3, (1, 7, TOKENS)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(rows, module.config.in_channels, 6, 10, generator=generator)
    text = torch.randn(rows, TOKENS, module.config.caption_channels, generator=generator)
    mask = (torch.arange(TOKENS)[None] < torch.tensor(lengths)[:, None]).long()
    timesteps = torch.tensor([1.0, 500.0, 999.0])
    scales = torch.tensor([1.0, 4.5, 20.0]) if module.config.guidance_embeds else None
    extra = {} if scales is None else {"guidance": scales * module.config.guidance_embeds_scale}
    expected = module(latents, text, timesteps, encoder_attention_mask=mask, return_dict=False, **extra)[0]
    forward = SanaForward(module)
    contexts = [forward.context(text[i, :length]) for i, length in enumerate(lengths)]
    result = forward.forward(latents, timesteps, scales, stack_contexts(contexts))
    expected = expected[:, : module.config.in_channels]  # the rest is a learned variance
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_every_input_of_a_row_changes_its_output_and_no_other_row():
    module = build(guidance_embeds=True, qk_norm="rms_norm_across_heads")
    forward = SanaForward(module)
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    latents, times, scales = draw(2, 4, 4, 4), torch.tensor([0.3, 0.8]), torch.tensor([2.0, 5.0])
    contexts = [forward.context(draw(n, 12)) for n in (3, 5)]
    before = forward.forward(latents, times, scales, stack_contexts(contexts))
    other = torch.tensor([0.0, 1.0])
    changes = [
        (latents + other[:, None, None, None], times, scales, contexts),
        (latents, times + 0.1 * other, scales, contexts),
        (latents, times, scales + other, contexts),
        (latents, times, scales, [contexts[0], forward.context(draw(5, 12))]),
    ]
    for x, t, s, c in changes:
        after = forward.forward(x, t, s, stack_contexts(c))
        torch.testing.assert_close(after[0], before[0], rtol=1e-5, atol=1e-5)
        assert (after[1] - before[1]).abs().max() > 1e-3


def test_contexts_of_one_length_need_no_mask_and_others_are_masked_where_they_end():
    short, long = (Context(torch.ones(2, 3, n, 4), torch.ones(2, 3, n, 4)) for n in (2, 5))
    assert stack_contexts([long, long]).bias is None
    batch = stack_contexts([short, long])
    assert batch.keys.shape == batch.values.shape == (2, 2, 3, 5, 4)
    assert batch.bias is not None
    assert batch.bias[:, 0, 0].isinf().tolist() == [[False, False, True, True, True], [False] * 5]
