"""Stage 2, text encoder and base transformer: `python -m sana_service.models.bundled.training.base`.

Flow matching (Lipman et al. 2022; Sana, section 3): x_sigma = (1 - sigma) x_0 + sigma noise, the model predicts
noise - x_0. Sigma is logit-normal and shifted by 8 towards noise, because with 32 redundant channels a shape is decided
above sigma 0.75. Tokens that an outline crosses count more. One caption in ten is empty, for guidance. `--resume` goes
on from the bundled weights, `--resume --weights FOLDER` from those of a run before.

`--guidance W` trains what classifier-free guidance makes of the two predictions, at scale W, instead of the captioned
one (the blend of Guidance-Free Training, Chen et al. 2025, arXiv 2501.15420, the other way round): a model that knows a
scene at once is otherwise so far from its uncaptioned self that guidance 5 overshoots. The text encoder stays as it is.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch import Tensor
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

from sana_service.models.bundled import base_folder
from sana_service.models.bundled.architecture import Architecture
from sana_service.models.bundled.assemble import VOCABULARY_SIZE, save_module
from sana_service.models.bundled.training import fast
from sana_service.models.bundled.training.bank import GROUP, TOKEN_GRIDS, WORDS, Batch, LatentBank, arrange
from sana_service.models.bundled.training.loop import Card, Plan, device, device_name, optimise, output_folder
from sana_service.models.bundled.training.scenes import paint_object

SIGMA_SHIFT, UNIFORM_SHARE = 8.0, 0.12
FIRST_COUNT, RENEW_COUNT, RENEW_SHARE = 8192, 1024, 0.10  # of the time goes into new scenes


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


def velocity_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error over tokens of (batch, 256) weights."""
    error = (prediction - target).square().mean(dim=2)
    return (error * weight).sum() / weight.sum()


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


@dataclass(frozen=True, eq=False)
class Rig:
    """What the transformers' stages share.

    Args:
        bank: of scenes, empty.
        tables: of `fast.grids` for every bin.
        block: the transformer block, compiled where there is an accelerator.
        dtype: to compute in.
    """

    bank: LatentBank
    tables: fast.Grids
    block: fast.Block
    dtype: torch.dtype


def rig(transformer: SanaTransformer2DModel, scenes: int) -> Rig:
    """Set up on the transformer's device for a bank of `scenes`.

    Raises:
        RuntimeError: if the kernels do not compute what PyTorch does.
    """
    where = transformer.device
    vae = AutoencoderDC.from_pretrained(base_folder() / "vae").to(where, memory_format=torch.channels_last)
    tokenizer = AutoTokenizer.from_pretrained(base_folder() / "tokenizer")
    tables = fast.grids(transformer, TOKEN_GRIDS)
    if where.type != "cuda":
        bank = LatentBank(vae, tokenizer, scenes, group=min(GROUP, scenes))
        return Rig(bank, tables, fast.block_forward, torch.float32)
    from sana_service.models.bundled.training import kernels

    error = kernels.check(tables.neighbours[0].int(), 800, torch.bfloat16)
    if not error < 0.02:
        raise RuntimeError(f"the Triton convolution is off by {error}")
    painter = torch.compile(paint_object, dynamic=False)
    bank = LatentBank(vae, tokenizer, scenes, painter=painter, group=GROUP)
    return Rig(bank, tables, torch.compile(kernels.block_forward, dynamic=False), torch.bfloat16)


def blank_text(text_encoder: Gemma2Model, instruction: Tensor) -> tuple[Tensor, Tensor]:
    """What the transformer sees of an empty caption: (1, 32, hidden) and its mask (1, 32)."""
    nothing = torch.zeros(1, WORDS, dtype=torch.int64, device=instruction.device)
    none = torch.zeros(1, dtype=torch.int64, device=instruction.device)
    ids, select, mask = arrange(nothing, none, none.bool(), instruction)
    unused = torch.empty(0)
    return encode_text(text_encoder, Batch(unused, unused, ids, select, mask, unused)), mask


def train(
    plan: Plan,
    *,
    batch: int,
    scenes: int,
    seed: int,
    modules: tuple[Gemma2Model, SanaTransformer2DModel],
    guidance: float = 1.0,
) -> tuple[Gemma2Model, SanaTransformer2DModel, Card]:
    """Run the stage.

    Args:
        plan: its seconds count from the start of the call, so that set-up is paid from them.
        batch: scenes a step.
        scenes: size of the bank.
        seed: of scenes, captions and noise.
        modules: text encoder and transformer to train, in place.
        guidance: the scale at which the guided prediction is trained; above 1 the text encoder stays as it is.

    Returns:
        The averaged modules and the run's card.
    """
    began = time.perf_counter()
    where, card = device(), Card("base", device_name(), asdict(plan))
    torch.manual_seed(seed)
    text_encoder, transformer = (module.to(where).train() for module in modules)
    averaged = copy.deepcopy(text_encoder).eval(), copy.deepcopy(transformer).eval()
    tools = rig(transformer, scenes)
    bank = tools.bank
    renewal = Renewal(bank, seed)
    bank.renew(min(FIRST_COUNT, scenes), seed)
    guided = guidance > 1
    text_encoder.requires_grad_(not guided)
    with torch.no_grad():
        blank, blank_mask = blank_text(text_encoder, bank.instruction)
    print(f"{int(bank.filled)} scenes after {time.perf_counter() - began:.0f} s", flush=True)

    def step_loss() -> Tensor:
        with torch.no_grad():
            data = bank.batch(batch)
            sigma = sample_sigma(batch, where)
            noise = torch.randn_like(data.tokens)
            noisy = torch.lerp(data.tokens, noise, sigma[:, None, None])
        with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
            text = encode_text(text_encoder, data)

        def predict(text: Tensor, mask: Tensor) -> Tensor:
            return fast.forward(
                transformer, tools.tables, noisy, data.bins, sigma, text, mask, block=tools.block, dtype=tools.dtype
            )

        prediction = predict(text, data.mask)
        if guided:
            with torch.no_grad():
                without = predict(blank.expand(batch, -1, -1), blank_mask.expand(batch, -1))
            captioned = (data.mask.sum(dim=1) > 1)[:, None, None]
            prediction = torch.where(captioned, without + guidance * (prediction - without), prediction)
        return velocity_loss(prediction, noise - data.tokens, data.weight)

    def save() -> None:
        card.results = {"scenes": renewal.made}
        save_module(averaged[0], output_folder() / "text_encoder")
        save_module(averaged[1], output_folder() / "transformer")
        card.write(output_folder())

    left = max(plan.seconds - (time.perf_counter() - began) - (20 if where.type == "cuda" else 0), 1.0)
    optimise(
        step_loss, [text_encoder, transformer], list(averaged), replace(plan, seconds=left), card,
        each_step=renewal, checkpoint=save,
    )  # fmt: skip
    card.setup_seconds = round(time.perf_counter() - began - card.train_seconds, 1)
    save()
    return *averaged, card


class Renewal:
    """Called before each step: puts new scenes into the bank, for no more than `RENEW_SHARE` of the time."""

    def __init__(self, bank: LatentBank, seed: int) -> None:
        self.bank, self.seed, self.spent, self.rounds = bank, seed, 0.0, 0
        self.count = min(RENEW_COUNT, bank.size)
        self.made = min(FIRST_COUNT, bank.size)
        self.began = math.inf

    def __call__(self, _: float, step: int) -> None:
        """See the class."""
        now = time.perf_counter()
        if step == 0:
            self.began = now
            self._draft()
        if step == 0 or step % 20 or self.spent > RENEW_SHARE * (now - self.began):
            return
        self.bank.renew(self.count, self._seed())
        if self.bank.tokens.is_cuda:
            torch.cuda.synchronize()
        self.rounds += 1
        self.made += self.count
        self._draft()
        self.spent += time.perf_counter() - now

    def _draft(self) -> None:
        self.bank.draft(self.count, self._seed())

    def _seed(self) -> int:
        return self.seed * 1_000_003 + self.rounds + 1


def bundled_modules(folder: Path) -> tuple[Gemma2Model, SanaTransformer2DModel]:
    """A text encoder and a transformer of earlier stages, in float32."""
    return (
        Gemma2Model.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        SanaTransformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float32),
    )


def main() -> None:
    """Run with the stage's own settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--weights", type=Path, default=base_folder(), help="where to resume from")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=1.0, help="train the guided prediction at this scale")
    arguments = parser.parse_args()
    plan = Plan(seconds=arguments.seconds, learning_rate=arguments.learning_rate, ema_decay=0.9995)
    modules = bundled_modules(arguments.weights) if arguments.resume else fresh_modules(arguments.seed)
    *_, card = train(plan, batch=192, scenes=65_536, seed=arguments.seed, modules=modules, guidance=arguments.guidance)
    print(card.steps, "steps,", card.setup_seconds, "s set-up,", card.train_seconds, "s training")


if __name__ == "__main__":
    main()
