"""Stage 3, the sprint transformer: `python -m sana_service.models.bundled.training.sprint`.

Guided distillation (Meng et al. 2023, arXiv 2210.03142) by regression onto the end of the teacher's trajectory (Luhman
and Luhman 2021, arXiv 2101.02388): from a noisy x_t the base, guided, solves its own equation in a few DPM-Solver++
steps down to x_0, and the sprint model learns to say that x_0 at once, with the guidance scale as an input.

Between the two notations, latents in units of the data's deviation: at trigflow's angle t the stock sprint pipeline
shows the model (1 - sigma) x_0 + sigma noise with sigma = sin t / (sin t + cos t), the base's own input, and the x_0
that `SCMScheduler` makes of the answer v is input - sigma v (the test compares). So the loss is the base's, in v.

Two deviations. The base draws nothing at guidance 1 (see `base --guidance`), so a guidance of g means the teacher at
`teacher_scale(g)`. And a part of the inputs below t = pi/2 is made of the student's own first answer, with fresh noise,
as the sampler does it. Text encoder and base stay as they are.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor
from transformers import Gemma2Model

from sana_service.models.bundled import base_folder, sprint_folder
from sana_service.models.bundled.assemble import save_module
from sana_service.models.bundled.training import fast
from sana_service.models.bundled.training.bank import Batch
from sana_service.models.bundled.training.base import (
    FIRST_COUNT,
    Renewal,
    Rig,
    blank_text,
    bundled_modules,
    encode_text,
    rig,
    velocity_loss,
)
from sana_service.models.bundled.training.loop import Card, Plan, device, device_name, optimise, output_folder

FIRST_ANGLE, SECOND_ANGLE, LOWEST_ANGLE = 1.57080, 1.3, 0.25  # the pipeline's two; 4 steps go down to 0.39
FIRST_SHARE, SECOND_SHARE = 0.35, 0.30
OWN_SHARE = 0.5  # of the inputs below the first angle, made of the student's own answer
GUIDANCE_RANGE = 1.0, 8.0
SOLVER_SHIFT, HIGHEST_SIGMA = 3.0, 0.9997  # as the base's scheduler has them

Predict = Callable[[Tensor, Tensor], Tensor]  # noisy, sigma -> v


def teacher_scale(guidance: Tensor) -> Tensor:
    """The base's guidance scale for the sprint's: 1 to 8 become 2.5 to 6, inside what the base was trained for."""
    return 2 + guidance / 2


def sigma_of(angle: Tensor) -> Tensor:
    """Flow matching's noise level for trigflow's angle; a little above 1 for the pipeline's own 1.5708."""
    return angle.sin() / (angle.sin() + angle.cos())


def sample_angles(count: int, where: torch.device) -> Tensor:
    """Where the inputs lie: the two angles of the default two steps, and anywhere."""
    anywhere = LOWEST_ANGLE + (FIRST_ANGLE - LOWEST_ANGLE) * torch.rand(count, device=where)
    kind = torch.rand(count, device=where)
    angle = torch.where(kind < FIRST_SHARE + SECOND_SHARE, SECOND_ANGLE, anywhere)
    return torch.where(kind < FIRST_SHARE, FIRST_ANGLE, angle)


def solver_sigmas(start: Tensor, steps: int) -> Tensor:
    """(steps + 1, batch) noise levels from `start` (batch,) to 0, spaced as the base's scheduler spaces them."""
    start = start.clamp(max=HIGHEST_SIGMA)
    plain = start / (SOLVER_SHIFT - (SOLVER_SHIFT - 1) * start)
    plain = plain * torch.linspace(1, 0, steps + 1, device=start.device)[:, None]
    return SOLVER_SHIFT * plain / (1 + (SOLVER_SHIFT - 1) * plain)


def solve(predict: Predict, noisy: Tensor, sigmas: Tensor) -> Tensor:
    """x_0 by DPM-Solver++(2M) (Lu et al. 2022), first order at both ends, as the stock scheduler for few steps.

    Args:
        predict: the guided velocity of (batch, tokens, values) at (batch,) sigma.
        noisy: at `sigmas[0]`.
        sigmas: (steps + 1, batch), falling; the last is 0.
    """

    def log_ratio(row: Tensor) -> Tensor:
        return (1 - row).log() - row.log()

    before = noisy
    steps = len(sigmas) - 1
    for step in range(steps):
        here, there = sigmas[step], sigmas[step + 1]
        clean = noisy - here[:, None, None] * predict(noisy, here)
        if step == steps - 1:
            return clean
        estimate = clean
        if step > 0:
            ahead = log_ratio(there) - log_ratio(here)
            behind = log_ratio(here) - log_ratio(sigmas[step - 1])
            estimate = clean + (ahead / behind / 2)[:, None, None] * (clean - before)
        ratio = (there / here)[:, None, None]
        noisy = ratio * noisy + (1 - there[:, None, None] - ratio * (1 - here[:, None, None])) * estimate
        before = clean
    return noisy


def guided(captioned: Tensor, without: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance with a scale of its own for each row."""
    return without + scale[:, None, None] * (captioned - without)


def train(
    plan: Plan,
    *,
    batch: int,
    scenes: int,
    seed: int,
    student: SanaTransformer2DModel,
    teacher: tuple[Gemma2Model, SanaTransformer2DModel],
    teacher_steps: int = 4,
) -> tuple[SanaTransformer2DModel, Card]:
    """Run the stage.

    Args:
        plan: its seconds count from the start of the call, so that set-up is paid from them.
        batch: scenes a step.
        scenes: size of the bank.
        seed: of scenes, captions and noise.
        student: trained in place.
        teacher: the base's text encoder and transformer, which stay as they are.
        teacher_steps: of the solver; each costs two forwards.

    Returns:
        The averaged transformer and the run's card.
    """
    began = time.perf_counter()
    where, card = device(), Card("sprint", device_name(), asdict(plan))
    torch.manual_seed(seed)
    student.to(where).train()
    text_encoder, base = (module.to(where).eval() for module in teacher)
    averaged = copy.deepcopy(student).eval()
    tools = rig(base, scenes)
    renewal = Renewal(tools.bank, seed)
    tools.bank.renew(min(FIRST_COUNT, scenes), seed)
    with torch.no_grad():
        blank = blank_text(text_encoder, tools.bank.instruction)
    print(f"{int(tools.bank.filled)} scenes after {time.perf_counter() - began:.0f} s", flush=True)

    def step_loss() -> Tensor:
        with torch.no_grad():
            data = tools.bank.batch(batch)
            with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
                text = encode_text(text_encoder, data)
            low, high = GUIDANCE_RANGE
            guidance = low + (high - low) * torch.rand(batch, device=where)
            angle = sample_angles(batch, where)
        return distillation_loss(student, base, tools, data, text, blank, angle, guidance, teacher_steps)

    def save() -> None:
        card.results = {"scenes": renewal.made, "batch": batch, "teacher_steps": teacher_steps}
        save_module(averaged, output_folder() / "sprint/transformer")
        card.write(output_folder())

    left = max(plan.seconds - (time.perf_counter() - began) - (20 if where.type == "cuda" else 0), 1.0)
    optimise(
        step_loss, [student], [averaged], replace(plan, seconds=left), card, each_step=renewal, checkpoint=save
    )  # fmt: skip
    card.setup_seconds = round(time.perf_counter() - began - card.train_seconds, 1)
    save()
    return averaged, card


def distillation_loss(
    student: SanaTransformer2DModel,
    base: SanaTransformer2DModel,
    tools: Rig,
    data: Batch,
    text: Tensor,
    blank: tuple[Tensor, Tensor],
    angle: Tensor,
    guidance: Tensor,
    teacher_steps: int,
) -> Tensor:
    """The student's velocity against the one that leads to the teacher's x_0.

    Args:
        student: whose parameters get gradients.
        base: the teacher.
        tools: of `base.rig`.
        data: the batch.
        text: its captions, encoded, (batch, 32, hidden).
        blank: an empty caption's encoding and mask.
        angle: (batch,) of trigflow.
        guidance: (batch,) as a caller of the sprint pipeline says it.
        teacher_steps: of the solver.
    """
    count = len(angle)
    blank_words, blank_mask = (part.expand(count, *(-1,) * (part.dim() - 1)) for part in blank)
    embedded = guidance * float(student.config.guidance_embeds_scale)

    def ask(
        model: SanaTransformer2DModel, x: Tensor, sigma: Tensor, words: Tensor, mask: Tensor, scale: Tensor | None
    ) -> Tensor:
        return fast.forward(
            model, tools.tables, x, data.bins, sigma, words, mask, guidance=scale, block=tools.block, dtype=tools.dtype
        )

    def teach(x: Tensor, sigma: Tensor) -> Tensor:
        captioned = ask(base, x, sigma, text, data.mask, None)
        without = ask(base, x, sigma, blank_words, blank_mask, None)
        return guided(captioned, without, teacher_scale(guidance))

    with torch.no_grad():
        sigma = sigma_of(angle)
        noise = torch.randn_like(data.tokens)
        top = sigma_of(torch.full_like(angle, FIRST_ANGLE))
        first = torch.randn_like(noise)
        answer = first - top[:, None, None] * ask(student, first, top, text, data.mask, embedded)
        own = (torch.rand_like(angle) < OWN_SHARE)[:, None, None]
        noisy = torch.lerp(torch.where(own, answer, data.tokens), noise, sigma[:, None, None])
        clean = solve(teach, noisy, solver_sigmas(sigma, teacher_steps))
        target = (noisy - clean) / sigma[:, None, None]
    return velocity_loss(ask(student, noisy, sigma, text, data.mask, embedded), target, data.weight)


def main() -> None:
    """Run with the stage's own settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--weights", type=Path, default=sprint_folder() / "transformer", help="where to begin from")
    parser.add_argument("--teacher", type=Path, default=base_folder(), help="text encoder and transformer")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=50)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--teacher-steps", type=int, default=4)
    arguments = parser.parse_args()
    plan = Plan(seconds=arguments.seconds, learning_rate=arguments.learning_rate, ema_decay=0.999)
    student = SanaTransformer2DModel.from_pretrained(arguments.weights, dtype=torch.float32)
    _, card = train(
        plan, batch=arguments.batch, scenes=65_536, seed=arguments.seed, student=student,
        teacher=bundled_modules(arguments.teacher), teacher_steps=arguments.teacher_steps,
    )  # fmt: skip
    print(card.steps, "steps,", card.setup_seconds, "s set-up,", card.train_seconds, "s training")


if __name__ == "__main__":
    main()
