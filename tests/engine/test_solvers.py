"""Step tables against the stock schedulers, stepped one after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SCMScheduler

from sana_service.engine.solvers import Solver, UnsupportedScheduler, advance, model_input

SHAPE = (4, 3, 5)
BASE: dict[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}


def draws(seed: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def run_table(solver: Solver, steps: int, outputs: list[torch.Tensor], noise: list[torch.Tensor]) -> torch.Tensor:
    """Outputs are given, so that rounding cannot be amplified by a model."""
    table = solver.table(steps)
    latents = noise[0][None] * table.start_scale
    history, fresh = torch.zeros_like(latents), iter(noise[1:])
    for step in range(steps):
        line = table.coefficients[step][None]
        z = next(fresh)[None] if table.needs_noise[step] else None
        latents, history = advance(line, latents, outputs[step][None], history, z)
    return latents[0] * table.result_scale


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 18, 50])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flow_shift": 6.0},
        {"solver_type": "heun"},
        {"solver_order": 1},
        {"euler_at_final": True},
        {"lower_order_final": False},
        {
            "prediction_type": "epsilon",
            "use_flow_sigmas": False,
            "final_sigmas_type": "sigma_min",
        },
        {"prediction_type": "v_prediction", "use_flow_sigmas": False, "use_karras_sigmas": True},
    ],
    ids=str,
)
def test_the_multistep_table_is_the_scheduler(changes, steps):
    scheduler = DPMSolverMultistepScheduler(**{**BASE, **changes})
    outputs, noise = draws(1, steps), draws(2, 1)
    result = run_table(Solver(scheduler, 0.5), steps, outputs, noise)
    scheduler.set_timesteps(steps)
    latents = noise[0]
    for timestep, output in zip(scheduler.timesteps, outputs, strict=True):
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    torch.testing.assert_close(result, latents, rtol=1e-4, atol=1e-5)
    assert torch.equal(Solver(scheduler, 0.5).table(steps).timesteps, scheduler.timesteps * 0.5)


@pytest.mark.parametrize("sigma_data", [0.5, 0.7])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_the_consistency_table_is_the_sprint_pipeline(steps, sigma_data):
    """The lines of `SanaSprintPipeline.__call__` around the transformer, with its output given."""
    scheduler = SCMScheduler(sigma_data=sigma_data)
    outputs, noise = draws(3, steps), draws(4, steps + 1)
    solver = Solver(scheduler, 1.0)
    result = run_table(solver, steps, outputs, noise)
    scheduler.set_timesteps(steps, max_timesteps=1.57080, intermediate_timesteps=1.3 if steps == 2 else None)
    scheduler.set_begin_index(0)
    latents, table = noise[0][None] * sigma_data, solver.table(steps)
    for i, angle in enumerate(scheduler.timesteps[:-1]):
        time = torch.sin(angle) / (torch.cos(angle) + torch.sin(angle))
        scale = torch.sqrt(time**2 + (1 - time) ** 2)
        seen = latents / sigma_data * scale
        torch.testing.assert_close(model_input(table.coefficients[i][None], latents), seen)
        assert table.timesteps[i] == time
        velocity = ((1 - 2 * time) * seen + (1 - 2 * time + 2 * time**2) * outputs[i][None]) / scale * sigma_data
        estimate = torch.cos(angle) * latents - torch.sin(angle) * velocity
        after = scheduler.timesteps[i + 1]
        latents = torch.cos(after) * estimate + torch.sin(after) * noise[i + 1][None] * sigma_data
    torch.testing.assert_close(result, estimate[0] / sigma_data, rtol=1e-4, atol=1e-5)


def test_only_steps_that_add_noise_ask_for_it():
    assert Solver(SCMScheduler(), 1.0).table(2).needs_noise == (True, False)
    assert Solver(DPMSolverMultistepScheduler(**BASE), 1.0).table(18).needs_noise == (False,) * 18


def test_rows_at_different_steps_of_different_schedules_advance_as_alone():
    solver = Solver(DPMSolverMultistepScheduler(**BASE), 1.0)
    lines = torch.stack(
        [solver.table(18).coefficients[7], solver.table(3).coefficients[0], solver.table(50).coefficients[49]]
    )
    x, v, h = (torch.stack(draws(seed, 3)) for seed in (5, 6, 7))
    together = advance(lines, x, v, h, None)
    for i in range(3):
        one = slice(i, i + 1)
        for ours, alone in zip(together, advance(lines[one], x[one], v[one], h[one], None), strict=True):
            assert torch.equal(ours[one], alone)


def test_a_table_is_made_once():
    solver = Solver(SCMScheduler(), 1.0)
    assert solver.table(2) is solver.table(2)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        DPMSolverMultistepScheduler(**{**BASE, "algorithm_type": "sde-dpmsolver++"}),
        DPMSolverMultistepScheduler(**{**BASE, "solver_order": 3}),
        DPMSolverMultistepScheduler(prediction_type="epsilon", thresholding=True),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_what_is_no_table_is_refused_by_name(scheduler):
    with pytest.raises(UnsupportedScheduler, match=type(scheduler).__name__):
        Solver(scheduler, 1.0)
