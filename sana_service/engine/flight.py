"""A job on its way through the stages: what it has become so far, and how long that took."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sana_service.engine.job import Artifact
from sana_service.engine.observer import Progress, Stage, preview_steps

if TYPE_CHECKING:
    import torch

    from sana_service.engine.bins import Size
    from sana_service.engine.job import Job
    from sana_service.engine.ticket import Ticket


@dataclass(eq=False)
class Flight:
    """One job. Text and denoise have it to themselves; decode and finish may hold different images of it.

    Args:
        ticket: its place in the queue and its future.
        size: the bin it is drawn at, pixels.
        positive, negative: (tokens, hidden) embeddings, once the text stage made them.
        steps_done: denoising steps, of all images together.
        batched: images in the forward pass, summed over those steps.
    """

    ticket: Ticket
    size: Size
    positive: torch.Tensor | None = None
    negative: torch.Tensor | None = None
    steps_done: int = 0
    batched: int = 0
    timings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        job = self.job
        self.latents: list[torch.Tensor | None] = [None] * len(job.seeds)
        given = self.ticket.pixels
        self.pixels = np.empty(job.pixel_shape, np.uint8) if given is None else given
        self.flagged = [False] * len(job.seeds)
        self.previewed_steps = preview_steps(job.num_inference_steps, job.observer.previews) if job.observer else ()
        self.timings["queue"] = 0.0
        self._left = threading.Lock()
        self._idle_since: float | None = self.ticket.submitted_at
        self._began = self.ticket.submitted_at

    @property
    def gone(self) -> bool:
        """Whether the job has left this device: it has ended, or another device begins it anew."""
        return self._left.locked()

    def leave(self) -> bool:
        """Leave this device; True for the one who may say how."""
        return self._left.acquire(blocking=False)

    @property
    def job(self) -> Job:
        return self.ticket.job

    @property
    def steps(self) -> int:
        """Denoising steps of all images."""
        return self.job.num_inference_steps * len(self.job.seeds)

    def begins(self, stage: Stage) -> None:
        """A stage has its turn; the observer is told the first time."""
        if self._idle_since is not None:
            self._began = time.monotonic()
            self.timings["queue"] += self._began - self._idle_since
            self._idle_since = None
        if stage not in self.timings:
            self.timings[stage] = 0.0
            self.tell(stage)

    def spent(self, stage: Stage, seconds: float) -> None:
        """Time that a stage took."""
        self.timings[stage] += seconds

    def ends(self, stage: Stage) -> None:
        """A stage that had the job to itself is done with it."""
        self.spent(stage, time.monotonic() - self._began)

    def idles(self) -> None:
        """The job waits for its next stage; that counts as queueing."""
        self._idle_since = time.monotonic()

    def tell(self, stage: Stage) -> None:
        """Say to the observer how far the job is."""
        if self.job.observer is not None:
            self.job.observer.progress(Progress(stage, self.steps_done, self.steps))

    def artifact(self) -> Artifact:
        """What the job became."""
        return Artifact(self.pixels, tuple(self.flagged), self.timings, self.batched / self.steps)


@dataclass(frozen=True, eq=False)
class Shot:
    """One image's latents on the way to pixels: the finished ones, or those of a preview.

    Args:
        flight: whose.
        image: which one of the job's.
        latents: (channels, h, w) float32.
        preview: the preview's number, None for the picture itself.
    """

    flight: Flight
    image: int
    latents: torch.Tensor
    preview: int | None = None
