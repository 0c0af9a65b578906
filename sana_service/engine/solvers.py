"""Step tables: what a scheduler does between two forward passes, as numbers of one row each.

Every solver used here is linear in the latents x, the transformer's output v, the estimate h of the step before and
fresh noise z, with coefficients that depend on the step alone. So a row carries its own table, made once for a number
of steps by asking diffusers' own scheduler, and rows at different steps of different schedules are advanced together:

    input    = in * x
    estimate = ex * x + ev * v
    x        = cx * x + cv * v + ch * h + cz * z
    h        = estimate

The result is `result_scale * x` after the last step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sana_service.models.checkpoint import Scheduler

SCM_MAX_TIMESTEP = 1.57080
"""Where sprint starts, in radians of the trigonometric flow: the stock pipeline's default."""

SCM_INTERMEDIATE_TIMESTEP = 1.3
"""Where its second of two steps starts; the scheduler accepts one for two steps only."""

COLUMNS = ("in", "ex", "ev", "cx", "cv", "ch", "cz")
_IN, _EX, _EV, _CX, _CV, _CH, _CZ = range(len(COLUMNS))


class UnsupportedScheduler(ValueError):
    """The checkpoint's scheduler cannot be written as a table."""


@dataclass(frozen=True, eq=False)
class StepTable:
    """One schedule.

    Args:
        timesteps: (steps,) float32, what the transformer is given, its `timestep_scale` applied.
        coefficients: (steps, 7) float32 in the order of `COLUMNS`.
        start_scale: of the first noise.
        result_scale: of the last latents.
    """

    timesteps: torch.Tensor
    coefficients: torch.Tensor
    start_scale: float
    result_scale: float

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def needs_noise(self) -> tuple[bool, ...]:
        """Whether each step adds fresh noise."""
        return tuple((self.coefficients[:, _CZ] != 0).tolist())


def advance(
    coefficients: torch.Tensor,
    latents: torch.Tensor,
    output: torch.Tensor,
    history: torch.Tensor,
    noise: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of each row.

    Args:
        coefficients: (rows, 7) float32, each row's own line of its table.
        latents, output, history: (rows, channels, h, w) float32.
        noise: likewise, or None where no row's step adds any.

    Returns:
        latents and history after the step, new tensors.
    """
    columns = coefficients[:, :, None, None, None].unbind(1)
    estimate = columns[_EX] * latents + columns[_EV] * output
    moved = columns[_CX] * latents + columns[_CV] * output + columns[_CH] * history
    if noise is not None:
        moved = moved + columns[_CZ] * noise
    return moved, estimate


def model_input(coefficients: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """What the transformer sees of each row, float32."""
    return coefficients[:, _IN, None, None, None] * latents


class Solver:
    """Makes the tables of one checkpoint.

    Args:
        scheduler: the checkpoint's; only its configuration is read.
        timestep_scale: of the transformer's configuration.

    Raises:
        UnsupportedScheduler: it is stochastic, not linear, or of another class.
    """

    def __init__(self, scheduler: Scheduler, timestep_scale: float) -> None:
        self._template = scheduler
        self._timestep_scale = timestep_scale
        name = type(scheduler).__name__
        makers = {"DPMSolverMultistepScheduler": self._multistep, "SCMScheduler": self._consistency}
        if name not in makers:
            raise UnsupportedScheduler(f"the scheduler {name} is not supported, only {', '.join(makers)}")
        config = scheduler.config
        if name == "DPMSolverMultistepScheduler" and (
            config.algorithm_type != "dpmsolver++" or config.thresholding or config.solver_order > 2
        ):
            raise UnsupportedScheduler(
                f"{name} is supported as dpmsolver++ up to order 2 without thresholding, "
                f"not as {config.algorithm_type} of order {config.solver_order}"
            )
        self._make = makers[name]
        self.table = lru_cache(maxsize=64)(self._table)

    def _table(self, steps: int) -> StepTable:
        """The schedule of a number of steps."""
        return self._make(steps)

    def _multistep(self, steps: int) -> StepTable:
        """DPM-Solver (Lu et al., arXiv 2211.01095), whatever its options: the scheduler itself is asked.

        Each step is taken once on the three unit vectors of (x, v, h); what comes out are the coefficients.
        """
        scheduler = _copy(self._template)
        scheduler.set_timesteps(steps, device="cpu")
        x, v, h = torch.eye(3).unbind()
        lines = []
        for timestep in scheduler.timesteps:
            scheduler.model_outputs[-1] = h
            moved = scheduler.step(v, timestep, x, return_dict=False)[0]
            estimate = scheduler.model_outputs[-1]
            lines.append(torch.stack([torch.ones(()), estimate[0], estimate[1], *moved, torch.zeros(())]))
        timesteps = scheduler.timesteps.to(torch.float32) * self._timestep_scale
        return StepTable(timesteps, torch.stack(lines), 1.0, 1.0)

    def _consistency(self, steps: int) -> StepTable:
        """SANA-Sprint's sampler (arXiv 2503.09641); section 3.1 there makes its prediction of the flow."""
        scheduler = _copy(self._template)
        scheduler.set_timesteps(
            steps,
            device="cpu",
            max_timesteps=SCM_MAX_TIMESTEP,
            intermediate_timesteps=SCM_INTERMEDIATE_TIMESTEP if steps == 2 else None,
        )
        sigma_data = float(scheduler.config.sigma_data)
        angles = scheduler.timesteps
        times, lines = [], []
        for angle, after in pairwise(angles):
            sine, cosine = torch.sin(angle), torch.cos(angle)
            flow_time = sine / (cosine + sine)
            norm = torch.sqrt(flow_time**2 + (1 - flow_time) ** 2)
            # velocity = (1 - 2 t) x + sigma_data (1 - 2 t + 2 t^2) / norm v
            by_x = 1 - 2 * flow_time
            by_v = sigma_data * (1 - 2 * flow_time + 2 * flow_time**2) / norm
            estimate_x, estimate_v = cosine - sine * by_x, -sine * by_v
            keep, renew = torch.cos(after), torch.sin(after) * sigma_data
            zero = torch.zeros(())
            lines.append(
                torch.stack(
                    [norm / sigma_data, estimate_x, estimate_v, keep * estimate_x, keep * estimate_v, zero, renew]
                )
            )
            times.append(flow_time)
        return StepTable(torch.stack(times), torch.stack(lines), sigma_data, 1 / sigma_data)


def _copy(template: Any) -> Any:
    """A scheduler of its own: schedulers count their steps and keep past predictions."""
    return type(template).from_config(template.config)
