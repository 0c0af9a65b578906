"""Stage 1, the autoencoder: `python -m sana_service.models.bundled.training.autoencoder`.

Trained on 256x256 crops near outlines; all its blocks are local, so what it learns on crops holds for whole pictures.
The decoder is fed latents with noise on them, because a diffusion model's latents are never exact; the noise shrinks
over the run. `--decoder-only` goes on from the bundled weights with the encoder frozen, which leaves the latent space,
and with it the transformers, as they are.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from dataclasses import asdict

import torch
from diffusers import AutoencoderDC
from torch import Tensor

from sana_service.models.bundled import base_folder
from sana_service.models.bundled.architecture import Architecture
from sana_service.models.bundled.assemble import save_module
from sana_service.models.bundled.training.language import sample_scene
from sana_service.models.bundled.training.loop import Card, Plan, device, device_name, optimise, output_folder
from sana_service.models.bundled.training.scenes import (
    SceneTable,
    edge_crops,
    paint_object,
    pictures,
    render,
    sample_sizes,
    tabulate,
)


def scene_table(count: int, *, seed: int, group: int = 1) -> SceneTable:
    """Random training scenes at random bins; each `group` neighbours share one."""
    rng = random.Random(seed)
    sizes = sample_sizes(count, rng, group=group)
    return tabulate([sample_scene(rng) for _ in range(count)], sizes, seed=seed)


def reconstruction_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """L1 + 2 MSE + half the L1 of horizontal and vertical differences, which is where outlines are."""
    error = (decoded - target).float()
    across, down = error.diff(dim=3).abs().mean(), error.diff(dim=2).abs().mean()
    return error.abs().mean() + 2 * (error * error).mean() + 0.5 * (across + down)


def latent_loss(latents: Tensor) -> Tensor:
    """Keeps each channel near mean 0 and deviation 1."""
    flat = latents.float().transpose(0, 1).flatten(1)
    return flat.mean(dim=1).square().mean() + flat.std(dim=1).log().square().mean()


@torch.no_grad()
def measure(vae: AutoencoderDC, *, count: int, seed: int) -> dict[str, float]:
    """Peak signal-to-noise ratio on fresh whole pictures of all bins, and the latents' mean and deviation."""
    table = scene_table(count, seed=seed).to(vae.device)
    ratios, total, square, number = [], 0.0, 0.0, 0
    for row in range(count):
        image = pictures(table.rows(slice(row, row + 1)))
        latents = vae.encode(image).latent
        decoded = vae.decode(latents).sample.clamp(-1, 1)
        error = ((decoded - image) / 2).square().mean()
        ratios.append(float(-10 * torch.log10(error)))
        total, square = total + float(latents.sum()), square + float(latents.square().sum())
        number += latents.numel()
    mean = total / number
    return {
        "psnr_mean_db": round(sum(ratios) / count, 2),
        "psnr_worst_db": round(min(ratios), 2),
        "latent_mean": round(mean, 4),
        "latent_deviation": round((square / number - mean * mean) ** 0.5, 5),
    }


def train(
    plan: Plan, *, batch: int, scenes: int, fresh: int, side: int = 256, decoder_only: bool = False, seed: int = 1
) -> tuple[AutoencoderDC, Card]:
    """Run the stage.

    Args:
        plan: time and learning rate.
        batch: crops a step.
        scenes: size of the table crops are drawn from.
        fresh: pictures to measure on afterwards.
        side: of the crops, in pixels.
        decoder_only: start from the bundled weights and leave the encoder alone.
        seed: of weights, scenes and noise.

    Returns:
        The averaged model in float32 and the run's card.
    """
    began = time.perf_counter()
    torch.manual_seed(seed)
    where, card = device(), Card("decoder" if decoder_only else "autoencoder", device_name(), asdict(plan))
    if decoder_only:
        vae = AutoencoderDC.from_pretrained(base_folder() / "vae")
    else:
        vae = AutoencoderDC(**Architecture().autoencoder())
    vae.to(where, memory_format=torch.channels_last).train()
    vae.encoder.requires_grad_(not decoder_only)
    averaged = copy.deepcopy(vae).eval()
    table = scene_table(scenes, seed=seed).to(where)
    noise_limit = torch.full((), 0.3, device=where)
    cuda = where.type == "cuda"
    painter = torch.compile(paint_object, dynamic=False) if cuda else paint_object
    encode = torch.compile(vae.encoder, dynamic=False) if cuda else vae.encoder
    decode = torch.compile(vae.decoder, dynamic=False) if cuda else vae.decoder

    def step_loss() -> Tensor:
        with torch.no_grad():
            rows = table.rows(torch.randint(len(table), (batch,), device=where))
            images = render(rows, side * side, crop=edge_crops(rows, side), painter=painter)
            images = images.unflatten(2, (side, side)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(where.type, torch.bfloat16, enabled=cuda):
            with torch.set_grad_enabled(not decoder_only):
                latents = encode(images)
            deviation = latents.detach().float().std()
            level = noise_limit * torch.rand(batch, 1, 1, 1, device=where) * deviation
            decoded = decode(latents + (level * torch.randn_like(latents, dtype=torch.float32)).to(latents.dtype))
        loss = reconstruction_loss(decoded, images)
        return loss if decoder_only else loss + 0.02 * latent_loss(latents)

    def shrink_noise(progress: float, _: int) -> None:
        noise_limit.fill_(0.2 if decoder_only else 0.3 - 0.15 * progress)

    optimise(
        step_loss, [vae], [averaged], plan, card,
        each_step=shrink_noise, checkpoint=lambda: save_module(averaged, output_folder() / "vae"),
    )  # fmt: skip
    card.setup_seconds = round(time.perf_counter() - began - card.train_seconds, 1)
    if not decoder_only:
        statistics = measure(averaged, count=fresh, seed=seed + 1)
        averaged.register_to_config(scaling_factor=round(1 / statistics["latent_deviation"], 5))
    card.results |= measure(averaged, count=fresh, seed=seed + 2)
    card.write(output_folder())
    save_module(averaged, output_folder() / "vae")
    return averaged, card


def main() -> None:
    """Run with the stage's own settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=290)
    parser.add_argument("--decoder-only", action="store_true")
    arguments = parser.parse_args()
    plan = Plan(seconds=arguments.seconds, learning_rate=6e-4 if arguments.decoder_only else 1.5e-3)
    _, card = train(plan, batch=128, scenes=60_000, fresh=66, decoder_only=arguments.decoder_only)
    print(card.steps, "steps", card.setup_seconds, "s set-up", card.results)


if __name__ == "__main__":
    main()
