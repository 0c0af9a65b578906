"""Stage 2, text encoder and base transformer: `python -m sana_service.models.bundled.training.base`.

Flow matching (Lipman et al. 2022; Sana, section 3): x_sigma = (1 - sigma) x_0 + sigma noise, the model predicts
noise - x_0. Sigma is logit-normal and shifted by 8 towards noise, because with 32 redundant channels a shape is decided
above sigma 0.75. One caption in ten is empty, for guidance. `--resume` goes on from the bundled weights.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch import Tensor
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

from sana_service.models.bundled import base_folder
from sana_service.models.bundled.architecture import Architecture
from sana_service.models.bundled.assemble import VOCABULARY_SIZE, save_module
from sana_service.models.bundled.training import fast
from sana_service.models.bundled.training.bank import GROUP, TOKEN_GRIDS, Batch, LatentBank
from sana_service.models.bundled.training.loop import Card, Plan, device, device_name, optimise, output_folder
from sana_service.models.bundled.training.scenes import paint_object

SIGMA_SHIFT, UNIFORM_SHARE = 8.0, 0.12
RENEW_COUNT, RENEW_SECONDS = 2048, 25.0


def encode_text(text_encoder: Gemma2Model, batch: Batch) -> Tensor:
    """The selected hidden states, (batch, 32, hidden).

    The mask is handed over finished: the class would otherwise look at the padding, which a captured graph cannot.
    Padding stands on the right of a causal decoder and so changes no real word.
    """
    length = batch.ids.shape[1]
    causal = torch.full((length, length), float("-inf"), device=batch.ids.device).triu(1)[None, None]
    masks = {"full_attention": causal, "sliding_attention": causal}
    hidden = text_encoder(batch.ids, attention_mask=masks, use_cache=False).last_hidden_state
    return hidden.gather(1, batch.select[:, :, None].expand(-1, -1, hidden.shape[-1]))


def sample_sigma(count: int, where: torch.device) -> Tensor:
    """Noise levels: logit-normal shifted by `SIGMA_SHIFT` (Esser et al. 2024, eq. 23), some uniform."""
    shifted = torch.sigmoid(torch.randn(count, device=where) + math.log(SIGMA_SHIFT))
    uniform = torch.rand(count, device=where)
    return torch.where(torch.rand(count, device=where) < UNIFORM_SHARE, uniform, shifted)


def velocity_loss(prediction: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Mean squared error over the pictures' own tokens."""
    error = (prediction - target).square().mean(dim=2)
    return (error * keep).sum() / keep.sum()


def fresh_modules(seed: int) -> tuple[Gemma2Model, SanaTransformer2DModel]:
    """Untrained text encoder and transformer; the transformer's last layer starts at zero."""
    torch.manual_seed(seed)
    architecture = Architecture()
    text_encoder = Gemma2Model(Gemma2Config(**architecture.text_encoder(VOCABULARY_SIZE)))
    transformer = SanaTransformer2DModel(**architecture.transformer())
    with torch.no_grad():
        transformer.proj_out.weight.zero_()
        transformer.proj_out.bias.zero_()
    return text_encoder, transformer


def train(
    plan: Plan, *, batch: int, scenes: int, seed: int, modules: tuple[Gemma2Model, SanaTransformer2DModel]
) -> tuple[Gemma2Model, SanaTransformer2DModel, Card]:
    """Run the stage.

    Args:
        plan: its seconds count from the start of the call, so that set-up is paid from them.
        batch: scenes a step.
        scenes: size of the bank.
        seed: of scenes, captions and noise.
        modules: text encoder and transformer to train, in place.

    Returns:
        The averaged modules and the run's card.
    """
    began = time.perf_counter()
    where, card = device(), Card("base", device_name(), asdict(plan))
    cuda = where.type == "cuda"
    kind = torch.bfloat16 if cuda else torch.float32
    torch.manual_seed(seed)
    text_encoder, transformer = (module.to(where).train() for module in modules)
    averaged = copy.deepcopy(text_encoder).eval(), copy.deepcopy(transformer).eval()
    vae = AutoencoderDC.from_pretrained(base_folder() / "vae").to(where, memory_format=torch.channels_last)
    tokenizer = AutoTokenizer.from_pretrained(base_folder() / "tokenizer")
    painter = torch.compile(paint_object, dynamic=False) if cuda else paint_object
    bank = LatentBank(vae, tokenizer, scenes, painter=painter, group=min(GROUP, scenes))
    bank.renew(scenes, seed)
    print(f"{scenes} scenes after {time.perf_counter() - began:.0f} s", flush=True)
    tables = fast.grids(transformer, TOKEN_GRIDS)
    block = torch.compile(fast.block_forward, dynamic=False) if cuda else fast.block_forward

    def step_loss() -> Tensor:
        with torch.no_grad():
            data = bank.batch(batch)
            sigma = sample_sigma(batch, where)
            noise = torch.randn_like(data.tokens)
            noisy = torch.lerp(data.tokens, noise, sigma[:, None, None])
        with torch.autocast(where.type, torch.bfloat16, enabled=cuda):
            text = encode_text(text_encoder, data)
        prediction = fast.forward(
            transformer, tables, noisy, data.bins, sigma, text, data.mask, block=block, dtype=kind
        )
        return velocity_loss(prediction, noise - data.tokens, tables.keep[data.bins])

    def save() -> None:
        save_module(averaged[0], output_folder() / "text_encoder")
        save_module(averaged[1], output_folder() / "transformer")
        card.write(output_folder())

    left = max(plan.seconds - (time.perf_counter() - began) - (40 if cuda else 0), 1.0)
    optimise(
        step_loss, [text_encoder, transformer], list(averaged), replace(plan, seconds=left), card,
        each_step=_renewal(bank, seed, scenes), checkpoint=save,
    )  # fmt: skip
    card.setup_seconds = round(time.perf_counter() - began - card.train_seconds, 1)
    save()
    return *averaged, card


def _renewal(bank: LatentBank, seed: int, scenes: int) -> Callable[[float, int], None]:
    last, round_ = time.perf_counter(), 0

    def renew(_: float, step: int) -> None:
        nonlocal last, round_
        if step and step % 20 == 0 and time.perf_counter() - last > RENEW_SECONDS:
            round_ += 1
            bank.renew(min(RENEW_COUNT, scenes), seed * 1_000_003 + round_)
            last = time.perf_counter()

    return renew


def bundled_modules(folder: Path) -> tuple[Gemma2Model, SanaTransformer2DModel]:
    """The committed text encoder and transformer in float32."""
    return (
        Gemma2Model.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        SanaTransformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float32),
    )


def main() -> None:
    """Run with the stage's own settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    plan = Plan(seconds=arguments.seconds, learning_rate=6e-4 if arguments.resume else 1e-3, ema_decay=0.9995)
    seed = 20 if arguments.resume else 10
    modules = bundled_modules(base_folder()) if arguments.resume else fresh_modules(seed)
    *_, card = train(plan, batch=192, scenes=32_768, seed=seed, modules=modules)
    print(card.steps, "steps,", card.setup_seconds, "s set-up,", card.train_seconds, "s training")


if __name__ == "__main__":
    main()
