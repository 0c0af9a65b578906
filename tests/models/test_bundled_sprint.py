"""The sprint stage's arithmetic against the stock pipeline and schedulers, and the stage itself, small, on a CPU."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
from transformers import Gemma2Config, Gemma2Model

from sana_service.models.bundled.architecture import Architecture
from sana_service.models.bundled.assemble import VOCABULARY_SIZE, schedulers, sprint_from_base
from sana_service.models.bundled.training import fast, sprint
from sana_service.models.bundled.training.bank import Batch, LatentBank
from sana_service.models.bundled.training.base import Rig, blank_text
from sana_service.models.bundled.training.loop import Plan

# numpy 2 warns about what diffusers' schedulers do with a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
TINY = Architecture(heads=1, layers=1, cross_heads=1)


def tiny_pair():
    """A text encoder, a base and the sprint model made of it, all untrained."""
    torch.manual_seed(0)
    text_encoder = Gemma2Model(Gemma2Config(**TINY.text_encoder(VOCABULARY_SIZE)))
    base = SanaTransformer2DModel(**TINY.transformer())
    return text_encoder, base, sprint_from_base(base, TINY)


def stock_first_step(model, noise, text, mask, guidance):
    """The latents that the stock pipeline returns after its one step, in units of the data's deviation."""
    pipeline = SanaSprintPipeline(None, None, None, model, SCMScheduler(sigma_data=0.5))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.encode_prompt = lambda *_, **__: (text, mask)
    pipeline.vae_scale_factor = 32
    return pipeline(
        prompt="anything", height=1024, width=1024, num_inference_steps=1, intermediate_timesteps=None,
        guidance_scale=guidance, latents=noise, output_type="latent", use_resolution_binning=False,
    ).images  # fmt: skip


def test_input_minus_sigma_times_answer_is_what_the_stock_pipeline_returns():
    model = tiny_pair()[2].eval()
    torch.nn.init.normal_(model.time_embed.guidance_embedder.linear_2.weight)
    noise, text, mask = torch.randn(1, 32, 32, 32), torch.randn(1, 5, 128), torch.ones(1, 5, dtype=torch.int64)
    with torch.no_grad():
        stock = stock_first_step(model, noise, text, mask, 6.0)
        sigma = sprint.sigma_of(torch.tensor([sprint.FIRST_ANGLE]))
        answer = fast.forward(
            model, fast.grids(model, [(16, 16)]), fast.pack(noise), torch.tensor([0]), sigma, text, mask,
            guidance=torch.tensor([6.0]) * model.config.guidance_embeds_scale,
        )  # fmt: skip
    ours = noise - sigma * fast.unpack(answer, 32, 32)
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("angle", [1.5708, 1.3, 0.7854, 0.3927])
def test_trigflow_in_other_words_is_flow_matching(angle):
    scheduler = SCMScheduler(sigma_data=0.5)
    scheduler.set_timesteps(1, timesteps=[angle, 0.0], max_timesteps=None, intermediate_timesteps=None)
    clean, noise, velocity = torch.randn(3, 8, 4, dtype=torch.float64)
    sample = 0.5 * (math.cos(angle) * clean + math.sin(angle) * noise)
    sigma = sprint.sigma_of(torch.tensor(angle, dtype=torch.float64))
    # What the pipeline does before and after the model, in its own words.
    scale = torch.sqrt(sigma**2 + (1 - sigma) ** 2)
    shown = sample / 0.5 * scale
    turned = 0.5 * ((1 - 2 * sigma) * shown + (1 - 2 * sigma + 2 * sigma**2) * velocity) / scale
    denoised = scheduler.step(turned, scheduler.timesteps[0], sample).pred_original_sample / 0.5
    torch.testing.assert_close(shown, (1 - sigma) * clean + sigma * noise, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(denoised, shown - sigma * velocity, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_the_teacher_is_solved_as_the_stock_scheduler_solves_it(steps):
    scheduler: DPMSolverMultistepScheduler = schedulers()[0]
    scheduler.set_timesteps(steps)
    torch.manual_seed(1)
    start = torch.randn(3, 256, 128)

    def velocity(x, sigma):
        return torch.tanh(1.7 * x) * (0.3 + sigma)[:, None, None] + 0.2 * x

    expected = start
    for index, time in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[index].float().expand(3)
        expected = scheduler.step(velocity(expected, sigma), time, expected).prev_sample
    sigmas = scheduler.sigmas.float()[:, None].expand(-1, 3)
    torch.testing.assert_close(sprint.solve(velocity, start, sigmas), expected, atol=1e-4, rtol=1e-4)
    # Our own spacing from the highest level is the scheduler's.
    ours = sprint.solver_sigmas(torch.ones(3), steps)
    torch.testing.assert_close(ours, sigmas, atol=2e-3, rtol=0)


def test_the_solver_ends_at_the_point_that_all_velocities_aim_at():
    goal = torch.randn(4, 256, 128)
    start = torch.tensor([1.0, 0.8, 0.5, 0.1])
    noisy = torch.lerp(goal, torch.randn_like(goal), start.clamp(max=sprint.HIGHEST_SIGMA)[:, None, None])
    end = sprint.solve(lambda x, sigma: (x - goal) / sigma[:, None, None], noisy, sprint.solver_sigmas(start, 4))
    torch.testing.assert_close(end, goal, atol=1e-4, rtol=1e-4)


def test_every_guidance_of_the_sprint_is_one_at_which_the_base_draws():
    scale = sprint.teacher_scale(torch.tensor([1.0, 4.5, 8.0]))
    assert scale.tolist() == [2.5, 4.25, 6.0]


def test_inputs_lie_where_the_sampler_asks():
    torch.manual_seed(0)
    angle = sprint.sample_angles(40_000, torch.device("cpu"))
    assert (angle == torch.tensor(1.57080)).float().mean() == pytest.approx(0.35, abs=0.01)
    assert (angle == torch.tensor(1.3)).float().mean() == pytest.approx(0.30, abs=0.01)
    # The other third is even: what lies below the second of four steps, pi/4, is 0.54 / 1.32 of it.
    assert (angle < math.pi / 4).float().mean() == pytest.approx(0.35 * 0.535 / 1.3208, abs=0.01)
    assert float(angle.min()) > 0.2
    assert float(angle.max()) <= 1.57081


def some_batch(count):
    """Random latents and captions; every picture square."""
    ids = torch.randint(5, 200, (count, 39))
    select = torch.arange(32).expand(count, -1)
    mask = (torch.arange(32) < 6).long().expand(count, -1)
    zeros = torch.zeros(count, dtype=torch.int64)
    return Batch(torch.randn(count, 256, 128), zeros, ids, select, mask, torch.ones(count, 256))


def test_the_loss_falls_and_the_guidance_embedder_learns():
    text_encoder, base, student = tiny_pair()
    tools = Rig(LatentBank.__new__(LatentBank), fast.grids(base, [(16, 16)]), fast.block_forward, torch.float32)
    data, text = some_batch(6), torch.randn(6, 32, 128)
    blank = blank_text(text_encoder, torch.tensor([2, 5, 6]))
    angle, guidance = sprint.sample_angles(6, torch.device("cpu")), torch.linspace(1, 8, 6)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    # Away from its start, which is the teacher.
    torch.nn.init.normal_(student.proj_out.weight, std=0.2)
    kept = base.proj_out.weight.clone()
    losses, embedder = [], student.time_embed.guidance_embedder.linear_2.weight
    for step in range(12):
        torch.manual_seed(7)
        loss = sprint.distillation_loss(student, base, tools, data, text, blank, angle, guidance, 2)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert float(embedder.grad.abs().max()) > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses
    assert base.proj_out.weight.grad is None
    assert torch.equal(base.proj_out.weight, kept)


def test_the_sprint_stage_writes_what_the_stock_class_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    text_encoder, base, student = tiny_pair()
    plan = Plan(seconds=60, learning_rate=1e-3, max_steps=2, warmup_steps=1, ema_decay=0.5)
    averaged, card = sprint.train(
        plan, batch=2, scenes=2, seed=0, student=student, teacher=(text_encoder, base), teacher_steps=2
    )
    loaded = SanaTransformer2DModel.from_pretrained(tmp_path / "sprint/transformer")
    assert card.steps == 2
    assert loaded.config.guidance_embeds
    assert float(loaded.time_embed.guidance_embedder.linear_2.weight.detach().abs().max()) > 0
    torch.testing.assert_close(loaded.proj_out.weight.float(), averaged.proj_out.weight, atol=1e-2, rtol=1e-2)
    assert '"stage": "sprint"' in (tmp_path / "sprint.json").read_text()
