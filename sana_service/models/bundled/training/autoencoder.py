"""Stage 1, the autoencoder: `python -m sana_service.models.bundled.training.autoencoder --out FOLDER`.

Trains on crops near outlines. The decoder is fed latents with noise, so that what the transformer gets slightly wrong
does not show; the noise falls as training goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import torch
from diffusers import AutoencoderDC
from torch import Tensor

from sana_service.models.bundled.architecture import Architecture
from sana_service.models.bundled.assemble import save_module
from sana_service.models.bundled.training.language import sample_scene
from sana_service.models.bundled.training.scenes import edge_crops, pictures, render, sample_sizes, tabulate
from sana_service.models.bundled.training.steps import Clock, Log, Trainer

FIRST_NOISE, LAST_NOISE = 0.3, 0.05


def draw_crops(count: int, side: int, seed: int, device: str, *, scenes: int = 8000, chunk: int = 128) -> Tensor:
    """Crops of random scenes, (count, 3, side, side) uint8."""
    rng = random.Random(seed)
    drawn = [sample_scene(rng) for _ in range(min(scenes, count))]
    table = tabulate(drawn, sample_sizes(len(drawn), rng), seed=seed).to(device)
    generator = torch.Generator(device).manual_seed(seed)
    crops = torch.empty(count, 3, side, side, dtype=torch.uint8, device=device)
    for start in range(0, count, chunk):
        rows = table.rows(torch.randint(len(table), (min(chunk, count - start),), device=device, generator=generator))
        pixels = render(rows, side * side, crop=edge_crops(rows, side, generator))
        crops[start : start + chunk] = to_bytes(pixels).unflatten(2, (side, side))
    return crops


def to_bytes(pixels: Tensor) -> Tensor:
    """[-1, 1] to 0..255."""
    return (pixels * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def loss_of(vae: AutoencoderDC, crops: Tensor, noise: Tensor) -> Tensor:
    """Absolute, squared and edge error, and a pull of every latent channel towards mean 0 and deviation 1."""
    pixels = crops.float() / 127.5 - 1
    latents = vae.encode(pixels).latent.float()
    deviation = latents.std(dim=(0, 2, 3))
    pull = (latents.mean(dim=(0, 2, 3)) ** 2 + torch.log(deviation + 1e-6) ** 2).mean()
    strength = noise * torch.rand(len(crops), 1, 1, 1, device=crops.device) * latents.detach().std()
    drawn = vae.decode(latents + strength * torch.randn_like(latents)).sample.float()
    error = drawn - pixels
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + (error**2).mean() + 0.5 * edges + 0.02 * pull


def train(
    out: Path,
    *,
    seconds: float,
    batch: int = 96,
    side: int = 256,
    crops: int = 100_000,
    learning_rate: float = 1.5e-3,
    device: str = "cuda",
    seed: int = 0,
    architecture: Architecture | None = None,
    start: Path | None = None,
) -> AutoencoderDC:
    """Train within a budget of time and write `vae`, `autoencoder.json` and a picture of reconstructions.

    Args:
        out: receives the files; the weights also every 75 seconds.
        seconds: of training, drawing included.
        batch: crops a step.
        side: of a crop.
        crops: how many to draw; each is seen several times, mirrored.
        learning_rate: at the start; falls along a cosine.
        device: "cuda" or "cpu".
        seed: of everything.
        architecture: the trained pair's by default.
        start: a `vae` folder to go on from.
    """
    clock = Clock(seconds)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderDC(**(architecture or Architecture()).autoencoder())
    if start:
        vae = AutoencoderDC.from_pretrained(start, use_safetensors=True)
    vae = torch.nn.Module.to(vae, device)
    data = draw_crops(crops, side, seed + 1, device)
    print("crops", len(data), "after", round(clock.elapsed, 1), "s", flush=True)
    trainer, log = Trainer([vae]), Log(out / "autoencoder_log.json")
    shown, noise = data[:batch].clone(), torch.tensor(FIRST_NOISE, device=device)
    backward = trainer.backward(lambda: loss_of(vae, shown, noise))
    while clock.done < 1:
        noise.fill_(FIRST_NOISE + (LAST_NOISE - FIRST_NOISE) * clock.done)
        picked = data[torch.randint(len(data), (batch,), device=device)]
        turn = trainer.steps % 8
        picked = picked.flip(2) if turn & 1 else picked
        picked = picked.flip(3) if turn & 2 else picked
        shown.copy_(picked.transpose(2, 3) if turn & 4 else picked)
        backward()
        trainer.update(learning_rate * 0.5 * (1 + math.cos(math.pi * clock.done)) + 1e-6)
        if trainer.steps % 200 == 0 or trainer.steps == 1:
            log.add(step=trainer.steps, seconds=clock.elapsed, loss=trainer.loss.item())
        if clock.checkpoint_due():
            with trainer.averaged():
                save_module(vae, out / "vae")
    torch._foreach_copy_([p.data for p in trainer.parameters], trainer.average)
    report(vae, out, seed=seed + 2, device=device)
    return vae


@torch.no_grad()
def report(vae: AutoencoderDC, out: Path, *, seed: int, device: str, groups: int = 12, each: int = 6) -> None:
    """Measure the latents' deviation and the PSNR of whole new pictures, and save the weights with the former."""
    rng = random.Random(seed)
    deviations, psnr, strip = [], [], []
    for group in range(groups):
        scenes = [sample_scene(rng, held_out=True) for _ in range(each)]
        size = sample_sizes(1, rng)[0] if group else (1024, 1024)
        pixels = pictures(tabulate(scenes, [size] * each, seed=seed + group).to(device))
        with torch.autocast(device, torch.bfloat16, device == "cuda"):
            latents = vae.encode(pixels).latent
            drawn = vae.decode(latents).sample.float().clamp(-1, 1)
        deviations.append(latents.float().pow(2).mean().item())
        psnr += (10 * torch.log10(4 / ((drawn - pixels) ** 2).mean(dim=(1, 2, 3)))).tolist()
        if group == 0:
            strip = [torch.cat([pixels[row], drawn[row]], dim=1) for row in range(min(4, each))]
    vae.register_to_config(scaling_factor=1 / math.sqrt(sum(deviations) / len(deviations)))
    save_module(vae, out / "vae")
    result = {
        "psnr_mean": sum(psnr) / len(psnr),
        "psnr_least": min(psnr),
        "pictures": len(psnr),
        "scaling_factor": vae.config.scaling_factor,
    }
    print(result, flush=True)
    (out / "autoencoder.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    save_picture(torch.cat(strip, dim=2), out / "autoencoder.jpg")


def save_picture(pixels: Tensor, file: Path, *, quality: int = 90) -> None:
    """(3, height, width) in [-1, 1] to a JPEG."""
    from PIL import Image

    Image.fromarray(to_bytes(pixels).permute(1, 2, 0).cpu().numpy()).save(file, quality=quality)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(options.out, seconds=options.seconds, start=options.start, seed=options.seed)
