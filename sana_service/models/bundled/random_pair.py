"""A pair with random weights and the hub's layout, quick enough for tests by the thousand.

It draws blotches, not scenes: every code path of the pipelines runs, and what a prompt, a seed, a guidance scale or a
size changes shows in the pixels. Activations are scaled so that pictures are neither flat nor saturated.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderDC

from sana_service.models.bundled import base_folder
from sana_service.models.bundled.architecture import Architecture
from sana_service.models.bundled.assemble import build, schedulers, sprint_from_base, write_pipeline

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
}
_PIXEL_DEVIATION = 0.4


def build_random_pair(folder: Path, *, seed: int = 0, shared_vae: bool = True, layers: int = 1) -> tuple[Path, Path]:
    """Write two complete pipelines.

    Args:
        folder: receives `base` and `sprint`, each with all of its own components.
        seed: of all weights; the global generator is left as it was.
        shared_vae: False gives the sprint pipeline a VAE of the same architecture with other weights.
        layers: transformer blocks.

    Returns:
        The base's and the sprint's folder.
    """
    architecture = Architecture(
        heads=2,
        layers=layers,
        cross_heads=2,
        text=_TEXT,
        encoder_channels=(8, 8, 8, 16, 16, 32),
        decoder_channels=(8, 8, 8, 16, 16, 32),
        decoder_layers=(0, 1, 1, 1, 1, 1),
    )
    tokenizer = base_folder() / "tokenizer"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        modules = build(architecture)
        _strengthen_conditioning(modules.transformer)
        _scale_pixels(modules.vae)
        sprint = sprint_from_base(modules.transformer, architecture)
        for parameter in sprint.time_embed.guidance_embedder.linear_2.parameters():
            parameter.normal_(std=1.0)
        sprint_vae = modules.vae
        if not shared_vae:
            sprint_vae = build(architecture).vae
            _scale_pixels(sprint_vae)
    base_scheduler, sprint_scheduler = schedulers()
    base, sprint_path = folder / "base", folder / "sprint"
    write_pipeline(
        base, "SanaPipeline", modules.transformer, base_scheduler,
        shared=(tokenizer, modules.text_encoder, modules.vae),
    )  # fmt: skip
    write_pipeline(
        sprint_path, "SanaSprintPipeline", sprint, sprint_scheduler,
        shared=(tokenizer, modules.text_encoder, sprint_vae),
    )  # fmt: skip
    return base, sprint_path


def _strengthen_conditioning(transformer: torch.nn.Module) -> None:
    """Let text and time reach the output: the classes' own initialisation almost drowns them in the noise."""
    for block in transformer.transformer_blocks:
        block.attn2.to_out[0].weight.mul_(3.0)
        block.scale_shift_table.normal_(std=0.5)
    transformer.caption_projection.linear_2.weight.mul_(3.0)


def _scale_pixels(vae: AutoencoderDC) -> None:
    """Give decoded unit-variance latents a mean of 0 and a deviation of `_PIXEL_DEVIATION`, channel by channel."""
    pixels = vae.decode(torch.randn(4, 32, 8, 8)).sample
    convolution = vae.decoder.conv_out.conv
    for channel in range(3):
        rows = slice(4 * channel, 4 * channel + 4)  # pixel_shuffle: four rows of the convolution to a channel
        factor = _PIXEL_DEVIATION / pixels[:, channel].std()
        convolution.weight[rows] *= factor
        convolution.bias[rows] = (convolution.bias[rows] - pixels[:, channel].mean()) * factor
