"""Noise to latents: the loops of the stock `SanaPipeline` and `SanaSprintPipeline`.

All state belongs to the job: a scheduler of its own, made from the checkpoint's configuration, and
a generator per image, so that image i depends on its own seed alone. Each loop calls `check` before
each step; `check` ends the job by raising. On a GPU the host runs ahead of the device by the
launches the driver queues, less than one step of either transformer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sana_service.engine.bins import Size
    from sana_service.engine.text import Embedding
    from sana_service.models.checkpoint import Checkpoint

Check = Callable[[], None]
OnStep = Callable[[int, torch.Tensor], None]
"""Called after each step with its number, from 1, and the latents that it predicts for the end."""

SCM_MAX_TIMESTEP = 1.57080
"""Where sprint starts, in radians of the trigonometric flow: the stock pipeline's default."""

SCM_INTERMEDIATE_TIMESTEP = 1.3
"""Where its second of two steps starts; the scheduler accepts one for two steps only."""


def denoise_base(
    checkpoint: Checkpoint,
    size: Size,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance_scale: float,
    positive: Embedding,
    negative: Embedding | None,
    check: Check,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Draw with classifier-free guidance where `negative` is given, without it otherwise.

    Returns:
        latents: (images, channels, height / 32, width / 32) float32, not scaled for the VAE.
    """
    transformer = checkpoint.transformer
    generators, latents = _start(checkpoint, size, seeds)
    states, mask = _repeat(positive, len(seeds), transformer.dtype)
    if negative is not None:
        negative_states, negative_mask = _repeat(negative, len(seeds), transformer.dtype)
        states, mask = torch.cat([negative_states, states]), torch.cat([negative_mask, mask])
    scheduler = _new_scheduler(checkpoint)
    scheduler.set_timesteps(steps, device=latents.device)
    extra = _step_arguments(scheduler, generators)
    for number, timestep in enumerate(scheduler.timesteps, 1):
        check()
        rows = latents if negative is None else torch.cat([latents, latents])
        flow = transformer(
            rows.to(transformer.dtype),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=timestep.expand(rows.shape[0]) * transformer.config.timestep_scale,
            return_dict=False,
        )[0].float()
        if negative is not None:
            unguided, guided = flow.chunk(2)
            flow = unguided + guidance_scale * (guided - unguided)
        if transformer.config.out_channels // 2 == transformer.config.in_channels:
            # The second half of the channels is a learned variance, which no solver here reads.
            flow = flow.chunk(2, dim=1)[0]
        latents = scheduler.step(flow, timestep, latents, **extra, return_dict=False)[0]
        if on_step is not None:
            on_step(number, _predicted(scheduler, latents))
    return latents


def denoise_sprint(
    checkpoint: Checkpoint,
    size: Size,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance_scale: float,
    positive: Embedding,
    check: Check,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Draw in few steps with embedded guidance (SANA-Sprint, arXiv 2503.09641).

    The transformer was trained on flow matching; section 3.1 there turns its prediction into the
    trigonometric flow that the solver integrates.

    Returns:
        latents: (images, channels, height / 32, width / 32) float32, not scaled for the VAE.
    """
    transformer = checkpoint.transformer
    generators, latents = _start(checkpoint, size, seeds)
    states, mask = _repeat(positive, len(seeds), transformer.dtype)
    scheduler = _new_scheduler(checkpoint)
    scheduler.set_timesteps(
        steps,
        device=latents.device,
        max_timesteps=SCM_MAX_TIMESTEP,
        intermediate_timesteps=SCM_INTERMEDIATE_TIMESTEP if steps == 2 else None,
    )
    scheduler.set_begin_index(0)
    extra = _step_arguments(scheduler, generators)
    sigma_data = scheduler.config.sigma_data
    guidance = torch.full([len(seeds)], guidance_scale, device=latents.device, dtype=torch.float32)
    guidance = guidance.to(positive.states.dtype) * transformer.config.guidance_embeds_scale
    latents = latents * sigma_data
    denoised: torch.Tensor = latents
    for number, angle in enumerate(scheduler.timesteps[:-1], 1):
        check()
        timestep = angle.expand(len(seeds))
        flow_time = torch.sin(timestep) / (torch.cos(timestep) + torch.sin(timestep))
        s = flow_time.view(-1, 1, 1, 1)
        norm = torch.sqrt(s**2 + (1 - s) ** 2)
        rows = latents / sigma_data * norm
        flow = transformer(
            rows.to(transformer.dtype),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            guidance=guidance,
            timestep=flow_time,
            return_dict=False,
        )[0]
        velocity = ((1 - 2 * s) * rows + (1 - 2 * s + 2 * s**2) * flow) / norm
        velocity = velocity.float() * sigma_data
        latents, denoised = scheduler.step(velocity, timestep, latents, **extra, return_dict=False)
        if on_step is not None:
            on_step(number, denoised / sigma_data)
    result: torch.Tensor = denoised / sigma_data
    return result


def _predicted(scheduler: Any, latents: torch.Tensor) -> torch.Tensor:
    """The end that a multistep solver last predicted; the latents themselves with any other solver."""
    outputs = getattr(scheduler, "model_outputs", None)
    return outputs[-1] if outputs else latents


def latent_shape(checkpoint: Checkpoint, size: Size) -> tuple[int, int, int]:
    """(channels, height, width) of one picture's latents."""
    factor = 2 ** (len(checkpoint.vae.config.encoder_block_out_channels) - 1)
    return checkpoint.transformer.config.in_channels, size.height // factor, size.width // factor


def _start(checkpoint: Checkpoint, size: Size, seeds: Sequence[int]) -> tuple[list[torch.Generator], torch.Tensor]:
    """A generator per image and each one's first draw, (images, channels, h, w) float32."""
    device = checkpoint.transformer.device
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    shape = (1, *latent_shape(checkpoint, size))
    draws = [torch.randn(shape, generator=one, device=device, dtype=torch.float32) for one in generators]
    return generators, torch.cat(draws)


def _repeat(embedding: Embedding, images: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return embedding.states.expand(images, -1, -1).to(dtype), embedding.mask.expand(images, -1)


def _new_scheduler(checkpoint: Checkpoint) -> Any:
    """A scheduler for one job: schedulers count their steps and keep past predictions."""
    return type(checkpoint.scheduler).from_config(checkpoint.scheduler.config)


def _step_arguments(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return {}
    return {"generator": generators}
