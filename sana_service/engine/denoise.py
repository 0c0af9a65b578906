"""Noise to latents: one step at a time, for rows that share a latent size and nothing else.

The loops of the stock `SanaPipeline` and `SanaSprintPipeline` turned inside out: a row carries its prompt's context,
its step table, its latents and the noise its generator will give, so a step needs nothing of the rows beside it and
rows may join and leave in between. Image i depends on its own seed alone. A step that fails changes no row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from sana_service.engine.batcher import BatchKey
from sana_service.engine.flight import Flight
from sana_service.engine.solvers import Solver, StepTable, advance, model_input
from sana_service.engine.transformer import Context, ContextBatch, SanaForward

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sana_service.engine.bins import Size
    from sana_service.models.checkpoint import Checkpoint, Models
    from sana_service.models.names import ModelName


@dataclass(frozen=True, eq=False)
class Schedule:
    """A step table, and its numbers on the device.

    Args:
        table: on the host.
        timesteps, coefficients: of the table.
    """

    table: StepTable
    timesteps: torch.Tensor
    coefficients: torch.Tensor


@dataclass(frozen=True)
class LatentLayout:
    """How a checkpoint's latents relate to its pictures.

    Args:
        channels: of the latents.
        factor: pixels along one side of a latent cell.
    """

    channels: int
    factor: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> LatentLayout:
        factor = 2 ** (len(checkpoint.vae.config.encoder_block_out_channels) - 1)
        return cls(checkpoint.transformer.config.in_channels, factor)

    def shape(self, size: Size) -> tuple[int, int, int]:
        """(channels, height, width) of one picture's latents."""
        return self.channels, size.height // self.factor, size.width // self.factor


@dataclass(eq=False)
class DenoiseRow:
    """One image that is being denoised.

    Args:
        flight: its job.
        image: which one of the job's.
        key: what it can share a forward pass with.
        schedule: its steps.
        contexts: of the negative prompt, if guided, and of the prompt.
        scale: () float32, its guidance scale.
        latents: (channels, h, w) float32.
        history: the solver's memory, likewise.
        noise: what each step adds, by step; None where it adds none.
        result: the finished latents, (channels, h, w) float32, not scaled for the VAE; None before the last step.
        predicted: the end as a step saw that the observer wants to see, likewise.
        step: how many steps are done.
    """

    flight: Flight
    image: int
    key: BatchKey
    schedule: Schedule
    contexts: tuple[Context, ...]
    scale: torch.Tensor
    latents: torch.Tensor
    history: torch.Tensor
    noise: list[torch.Tensor | None]
    result: torch.Tensor | None = None
    predicted: torch.Tensor | None = None
    step: int = 0

    @property
    def table(self) -> StepTable:
        return self.schedule.table

    @property
    def done(self) -> bool:
        return self.step == len(self.table)

    def tensors(self) -> Iterator[torch.Tensor]:
        """All that it holds before its first step."""
        yield from (self.schedule.timesteps, self.schedule.coefficients, self.scale, self.latents, self.history)
        for context in self.contexts:
            yield from (context.keys, context.values)
        yield from (noise for noise in self.noise if noise is not None)


class Denoiser:
    """Both checkpoints' steps on one device; one thread begins jobs, and one, perhaps another, takes their steps.

    Args:
        models: on their device.
        forwards: each checkpoint's transformer.

    Raises:
        UnsupportedScheduler: a checkpoint's scheduler cannot be run row by row.
    """

    def __init__(self, models: Models, forwards: Mapping[ModelName, SanaForward]) -> None:
        self._forwards = forwards
        self._latents = {name: LatentLayout.of(checkpoint) for name, checkpoint in models.checkpoints.items()}
        self._solvers = {
            name: Solver(checkpoint.scheduler, checkpoint.transformer.config.timestep_scale)
            for name, checkpoint in models.checkpoints.items()
        }
        self._schedule = lru_cache(maxsize=64)(self._schedule_of)
        self._blank: tuple[torch.Tensor, Context] | None = None
        self._stacked: dict[ModelName, tuple[tuple[Context, ...], ContextBatch]] = {}

    def rows(self, flight: Flight) -> list[DenoiseRow]:
        """A row for each image of a job whose prompts are encoded."""
        job = flight.job
        forward, schedule = self._forwards[job.model], self._schedule(job.model, job.num_inference_steps)
        assert flight.positive is not None
        contexts: tuple[Context, ...] = (forward.context(flight.positive),)
        if flight.negative is not None:
            contexts = (self._negative_context(job.model, flight.negative), *contexts)
        shape = self._latents[job.model].shape(flight.size)
        key = BatchKey(job.model, shape[1], shape[2], flight.negative is not None)
        return [self._row(flight, image, key, schedule, contexts, shape) for image in range(len(job.seeds))]

    def _row(
        self,
        flight: Flight,
        image: int,
        key: BatchKey,
        schedule: Schedule,
        contexts: tuple[Context, ...],
        shape: tuple[int, int, int],
    ) -> DenoiseRow:
        """Draws in the order of the stock pipelines: the first noise, then that of each step."""
        device = self._forwards[key.model].device
        generator = torch.Generator(device).manual_seed(flight.job.seeds[image])

        def draw() -> torch.Tensor:
            # The leading one is part of what the generator is asked for.
            return torch.randn((1, *shape), generator=generator, device=device, dtype=torch.float32)[0]

        table = schedule.table
        latents = draw() * table.start_scale
        noise = [draw() if needed else None for needed in table.needs_noise]
        scale = torch.full((), flight.job.guidance_scale, dtype=torch.float32, device=device)
        return DenoiseRow(flight, image, key, schedule, contexts, scale, latents, torch.zeros_like(latents), noise)

    def _schedule_of(self, model: ModelName, steps: int) -> Schedule:
        table = self._solvers[model].table(steps)
        device = self._forwards[model].device
        return Schedule(table, table.timesteps.to(device), table.coefficients.to(device))

    def _negative_context(self, model: ModelName, states: torch.Tensor) -> Context:
        """The last one is kept: nearly every job's negative prompt is empty."""
        if self._blank is None or self._blank[0] is not states:
            self._blank = (states, self._forwards[model].context(states))
        return self._blank[1]

    def step(self, rows: Sequence[DenoiseRow]) -> None:
        """Advance rows of one key by one step each."""
        model, guided = rows[0].key.model, rows[0].key.guided
        # Everything is on the device already: a copy from the host would wait for the step before.
        forward = self._forwards[model]
        coefficients = _stacked([row.schedule.coefficients[row.step] for row in rows])
        timesteps = _stacked([row.schedule.timesteps[row.step] for row in rows])
        scales = guidance_scales(rows)
        latents = _stacked([row.latents for row in rows])
        history = _stacked([row.history for row in rows])
        seen = model_input(coefficients, latents).to(forward.dtype)
        contexts = self._contexts(rows)
        if guided:
            both = forward.forward(torch.cat([seen, seen]), timesteps.repeat(2), None, contexts)
            without, given = both.chunk(2)
            output = without + scales[:, None, None, None] * (given - without)
        else:
            output = forward.forward(seen, timesteps, scales if forward.embeds_guidance else None, contexts)
        latents, estimate = advance(coefficients, latents, output, history, _noise(rows))
        # Part of the step, so that whoever waits for the step may read them from another stream.
        ends = [_scaled(latents[i], row) if row.step + 1 == len(row.table) else None for i, row in enumerate(rows)]
        shown = [
            _scaled(estimate[i], row) if row.step + 1 in row.flight.previewed_steps else None
            for i, row in enumerate(rows)
        ]
        for i, row in enumerate(rows):
            row.latents, row.history = latents[i], estimate[i]
            row.result, row.predicted = ends[i], shown[i]
            row.step += 1

    def _contexts(self, rows: Sequence[DenoiseRow]) -> ContextBatch:
        """All negative contexts, then all positive ones; kept while the batch stays the same."""
        contexts = tuple(context for turn in zip(*(row.contexts for row in rows), strict=True) for context in turn)
        model = rows[0].key.model
        stacked = self._stacked.pop(model, None)  # or two batches would be held at once
        if stacked is None or not _same(stacked[0], contexts):
            stacked = None
            stacked = (contexts, self._forwards[model].stack(contexts))
        self._stacked[model] = stacked
        return stacked[1]

    def forget(self) -> None:
        """Let go of the last batch's contexts: nothing is left to denoise, or memory is short."""
        self._stacked.clear()


def _scaled(latents: torch.Tensor, row: DenoiseRow) -> torch.Tensor:
    return latents * row.table.result_scale


def _same(ours: tuple[Context, ...], others: tuple[Context, ...]) -> bool:
    return len(ours) == len(others) and all(one is other for one, other in zip(ours, others, strict=True))


def guidance_scales(rows: Sequence[DenoiseRow]) -> torch.Tensor:
    """(rows,) float32."""
    return _stacked([row.scale for row in rows])


def _noise(rows: Sequence[DenoiseRow]) -> torch.Tensor | None:
    noise = [row.noise[row.step] for row in rows]
    if all(one is None for one in noise):
        return None
    return _stacked(
        [torch.zeros_like(row.latents) if one is None else one for row, one in zip(rows, noise, strict=True)]
    )


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """One row each, to be read only; that of one alone is where it was, which saves a launch."""
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]
