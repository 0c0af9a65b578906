"""Stage 2, the base model: `python -m sana_service.models.bundled.training.base --out FOLDER --start FOLDER`.

Flow matching on the autoencoder's latents of drawn scenes, the text encoder trained with it. Given the folder that an
earlier run wrote, it goes on from there (stage 3).
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderDC, SanaPipeline
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor
from transformers import AutoTokenizer

from sana_service.models.bundled import base_folder
from sana_service.models.bundled.architecture import Architecture
from sana_service.models.bundled.assemble import Modules, build, save_module, schedulers, write_pipeline
from sana_service.models.bundled.training.autoencoder import save_picture
from sana_service.models.bundled.training.captions import describe
from sana_service.models.bundled.training.language import sample_scene
from sana_service.models.bundled.training.scenes import pictures, tabulate
from sana_service.models.bundled.training.steps import Clock, Log, Step, Trainer
from sana_service.models.bundled.training.tokenizer import instruction_lines

SHIFT, UNIFORM_SHARE = 8.0, 0.12
INSTRUCTED_SHARE, EMPTY_SHARE = 0.7, 0.1
PROMPT_TOKENS, CAPTIONS = 30, 3
SQUARE_WEIGHT = 4


def all_bins() -> list[tuple[int, int]]:
    """(width, height) of the 1024 set."""
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN

    return sorted({(int(width), int(height)) for height, width in ASPECT_RATIO_1024_BIN.values()})


@dataclass(frozen=True, eq=False)
class Examples:
    """Scenes of one size, on the device.

    Args:
        latents: (scenes, 32, height / 32, width / 32) bfloat16, scaled to unit deviation.
        prompts: (scenes, captions, tokens) int64 without <bos>, padded with 0.
        lengths: (scenes, captions) int64.
    """

    latents: Tensor
    prompts: Tensor
    lengths: Tensor


class Text:
    """The tokenizer as the stock pipelines use it.

    Args:
        folder: the `tokenizer` folder.
        tokens: a prompt's most tokens.
    """

    def __init__(self, folder: Path, tokens: int = PROMPT_TOKENS) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._tokens = tokens
        self.instruction: list[int] = self._tokenizer("".join(instruction_lines())).input_ids[1:]

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids without <bos>, padded with 0, and how many there are."""
        rows = [ids[1 : 1 + self._tokens] for ids in self._tokenizer(captions).input_ids]
        lengths = torch.tensor([len(row) for row in rows])
        return torch.tensor([row + [0] * (self._tokens - len(row)) for row in rows]), lengths


@torch.no_grad()
def draw_examples(
    vae: AutoencoderDC, text: Text, images: int, bins: list[tuple[int, int]], seed: int, device: str
) -> dict[tuple[int, int], Examples]:
    """Draw, encode and describe new scenes, the square bin's share `SQUARE_WEIGHT` times the others'."""
    rng = random.Random(seed)
    weights = [SQUARE_WEIGHT if size == (1024, 1024) else 1 for size in bins]
    examples = {}
    for number, (size, weight) in enumerate(zip(bins, weights, strict=True)):
        scenes = [sample_scene(rng) for _ in range(max(2, round(images * weight / sum(weights))))]
        scenes.sort(key=lambda scene: len(scene.things) * scene.count)
        captions = [describe(scene, rng) for scene in scenes for _ in range(CAPTIONS)]
        prompts, lengths = text.encode(captions)
        table = tabulate(scenes, [size] * len(scenes), seed=seed * 1000 + number).to(device)
        latents = []
        for start in range(0, len(scenes), 48):
            with torch.autocast(device, torch.bfloat16, device == "cuda"):
                code = vae.encode(pictures(table.rows(slice(start, start + 48)))).latent
            latents.append((code.float() * vae.config.scaling_factor).bfloat16())
        examples[size] = Examples(
            torch.cat(latents),
            prompts.reshape(len(scenes), CAPTIONS, -1).to(device),
            lengths.reshape(len(scenes), CAPTIONS).to(device),
        )
    return examples


class Batch:
    """The inputs of a step, in tensors that stay the same ones while their contents change.

    Args:
        rows: examples a step.
        size: (width, height) in pixels.
        instruction: token ids of the pipelines' instruction.
        device: where they are.
    """

    def __init__(self, rows: int, size: tuple[int, int], instruction: list[int], device: str) -> None:
        self.rows, self.device = rows, device
        self._instruction = torch.tensor(instruction, device=device).expand(rows, -1)
        lines = len(instruction)
        width, height = size
        self.clean = torch.zeros(rows, 32, height // 32, width // 32, device=device)
        self.noise = torch.zeros_like(self.clean)
        self.sigma = torch.zeros(rows, device=device)
        self.ids = torch.zeros(rows, 1 + lines + PROMPT_TOKENS, dtype=torch.long, device=device)
        self.chosen = torch.zeros(rows, PROMPT_TOKENS + 2, dtype=torch.long, device=device)
        self.mask = torch.zeros(rows, PROMPT_TOKENS + 2, dtype=torch.long, device=device)

    def fill(self, examples: Examples) -> None:
        """Draw examples, wordings, noise and its strength."""
        rows, device = self.rows, self.device
        pick = torch.randint(len(examples.latents), (rows,), device=device)
        caption = torch.randint(examples.prompts.shape[1], (rows,), device=device)
        self.clean.copy_(examples.latents[pick])
        self.noise.normal_()
        normal = torch.sigmoid(torch.randn(rows, device=device))
        shifted = SHIFT * normal / (1 + (SHIFT - 1) * normal)
        uniform = torch.rand(rows, device=device)
        self.sigma.copy_(torch.where(torch.rand(rows, device=device) < UNIFORM_SHARE, uniform, shifted))
        empty = torch.rand(rows, device=device) < EMPTY_SHARE
        instructed = (torch.rand(rows, device=device) < INSTRUCTED_SHARE) & ~empty
        self.tell(examples.prompts[pick, caption], examples.lengths[pick, caption], instructed, empty)

    def tell(self, prompts: Tensor, lengths: Tensor, instructed: Tensor, empty: Tensor) -> None:
        """Lay the tokens out as the stock pipelines do.

        With the instruction they keep <bos>, its last line and the prompt; without it <bos> and the prompt.
        """
        rows, device = self.rows, self.device
        prompts = torch.where(empty[:, None], 0, prompts)
        lengths = torch.where(empty, 0, lengths)
        bos = torch.full((rows, 1), 2, device=device)
        lines = self._instruction.shape[1]
        long = torch.cat([bos, self._instruction, prompts], dim=1)
        short = torch.cat([bos, prompts, torch.zeros_like(self._instruction)], dim=1)
        self.ids.copy_(torch.where(instructed[:, None], long, short))
        place = torch.arange(PROMPT_TOKENS + 2, device=device)
        self.chosen.copy_(torch.where(instructed[:, None] & (place > 0), place + lines - 1, place))
        self.mask.copy_(place < (1 + lengths + instructed.long())[:, None])


def loss_of(modules: Modules, batch: Batch) -> Tensor:
    """Mean squared error of the velocity."""
    # No mask: attention is causal and padding stands last, so no token that is used sees it.
    masks = {"full_attention": None, "sliding_attention": None}
    states = modules.text_encoder(batch.ids, attention_mask=masks, use_cache=False)[0]
    states = states.gather(1, batch.chosen[:, :, None].expand(-1, -1, states.shape[-1]))
    sigma = batch.sigma[:, None, None, None]
    noisy = (1 - sigma) * batch.clean + sigma * batch.noise
    velocity = modules.transformer(
        noisy, encoder_hidden_states=states, timestep=batch.sigma, encoder_attention_mask=batch.mask, return_dict=False
    )[0]
    return ((velocity.float() - (batch.noise - batch.clean)) ** 2).mean()


def show_size(modules: Modules, size: tuple[int, int]) -> None:
    """Give the patch embedding the positions of a size: it would compute them on the CPU at every call."""
    embed = modules.transformer.patch_embed
    width, height = size[0] // 64, size[1] // 64
    positions = get_2d_sincos_pos_embed(
        embed.pos_embed.shape[-1], (height, width), base_size=embed.base_size, interpolation_scale=1, output_type="pt"
    )
    embed.height, embed.width = height, width
    embed.pos_embed = positions.float()[None].to(embed.pos_embed.device)


def train(
    out: Path,
    start: Path,
    *,
    seconds: float,
    images: int = 40_000,
    batch: int = 192,
    learning_rate: float = 1e-3,
    last_learning_rate: float = 0.0,
    bins: list[tuple[int, int]] | None = None,
    fresh: bool = False,
    device: str = "cuda",
    seed: int = 0,
    architecture: Architecture | None = None,
) -> Modules:
    """Train within a budget of time and write a complete pipeline and its log.

    Args:
        out: receives `base` and `base_log.json`; the weights also every 75 seconds.
        start: a pipeline's folder: its tokenizer and VAE are used, and unless `fresh` its other weights.
        seconds: of training, drawing included.
        images: scenes to draw.
        batch: of one step; each step has one size.
        learning_rate: at the start; falls linearly.
        last_learning_rate: at the end.
        bins: sizes to train; all 33 by default.
        fresh: begin with random weights.
        device: "cuda" or "cpu".
        seed: of everything.
        architecture: the trained pair's by default.
    """
    clock = Clock(seconds)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    if fresh:
        built = build(architecture or Architecture())
        text_encoder, transformer = built.text_encoder, built.transformer
    else:
        stored = SanaPipeline.from_pretrained(start, use_safetensors=True, torch_dtype=torch.float32)
        text_encoder, transformer = stored.text_encoder, stored.transformer
    vae = AutoencoderDC.from_pretrained(start / "vae", use_safetensors=True, torch_dtype=torch.float32)
    modules = Modules(*(torch.nn.Module.to(module, device) for module in (text_encoder, vae.eval(), transformer)))
    text = Text(start / "tokenizer")
    bins = bins or all_bins()
    examples = draw_examples(modules.vae, text, images, bins, seed + 1, device)
    print("examples after", round(clock.elapsed, 1), "s", flush=True)
    modules.text_encoder.train()
    modules.transformer.train()
    trainer, log = Trainer([modules.text_encoder, modules.transformer]), Log(out / "base_log.json")
    batches: dict[tuple[int, int], Batch] = {}
    steps: dict[tuple[int, int], Step] = {}
    for size in bins:
        show_size(modules, size)
        shown = batches[size] = Batch(batch, size, text.instruction, device)
        shown.fill(examples[size])
        steps[size] = trainer.backward(lambda shown=shown: loss_of(modules, shown))  # type: ignore[misc]
    print("captured after", round(clock.elapsed, 1), "s", flush=True)
    rng, total, begun = random.Random(seed), torch.zeros((), device=device), clock.elapsed
    weights = [SQUARE_WEIGHT if size == (1024, 1024) else 1 for size in bins]
    while clock.done < 1:
        size = rng.choices(bins, weights)[0]
        if device == "cpu":
            show_size(modules, size)
        batches[size].fill(examples[size])
        steps[size]()
        share = (clock.elapsed - begun) / max(1.0, seconds - begun)
        trainer.update(learning_rate + (last_learning_rate - learning_rate) * min(1.0, share))
        total += trainer.loss
        if trainer.steps % 100 == 0 or trainer.steps == 1:
            log.add(step=trainer.steps, seconds=clock.elapsed, loss=total.item() / min(100, trainer.steps))
            total.zero_()
        if clock.checkpoint_due():
            with trainer.averaged():
                save_module(modules.transformer, out / "base" / "transformer")
                save_module(modules.text_encoder, out / "base" / "text_encoder")
    with torch.no_grad():
        torch._foreach_copy_(trainer.parameters, trainer.average)
    show_size(modules, (1024, 1024))
    save(modules, out, start)
    return modules


def save(modules: Modules, out: Path, start: Path) -> None:
    """Write the complete base pipeline."""
    write_pipeline(
        out / "base", "SanaPipeline", modules.transformer, schedulers()[0],
        shared=(start / "tokenizer", modules.text_encoder, modules.vae),
    )  # fmt: skip


SAMPLES = (
    "a red circle on a white background",
    "Draw a blue star on a yellow background.",
    "a green square to the left of an orange triangle on a black background",
    "three purple hearts on a white background",
    "a small pink ring in the top left corner on a blue background",
    "a large brown cross on a green background",
    "a yellow diamond above a red square on a gray background",
    "a white heart on black and red stripes",
    "an orange star on a gradient from blue to pink",
    "a red circle, a green triangle and a blue square on a white background",
    "five black stars on orange",
    "A picture of a big white ring on a purple background",
    "two gray crosses on a pink background",
    "a blue triangle below a yellow heart on a brown background",
    "a black diamond on the right on a white and yellow checkerboard",
    "a cat in space",
)


@torch.no_grad()
def contact_sheet(folder: Path, file: Path, *, device: str, side: int = 256, steps: int = 18) -> None:
    """Draw `SAMPLES` at 1024x1024 with the stock pipeline and save them small, four in a row."""
    pipeline = SanaPipeline.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.bfloat16).to(device)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = [
        pipeline(prompt=list(SAMPLES[start : start + 4]), height=1024, width=1024, num_inference_steps=steps,
                 guidance_scale=5.0, generator=generator, output_type="pt").images.float().cpu()
        for start in range(0, len(SAMPLES), 4)
    ]  # fmt: skip
    rows = [torch.cat(list(torch.nn.functional.interpolate(row, (side, side), mode="area")), dim=2) for row in drawn]
    save_picture(2 * torch.cat(rows, dim=1) - 1, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, default=base_folder())
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--last-learning-rate", type=float, default=0.0)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    train(**options)
    contact_sheet(options["out"] / "base", options["out"] / "base.jpg", device="cuda")
