"""What a job will take, learned from the jobs that ended. Pure Python.

Two rates per model, each an exponential moving average: denoising per transformer row (one image in
one step, twice with classifier-free guidance) and everything else per image. Admission and
`Retry-After` read the prediction; nothing depends on its being right.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from sana_service.engine.job import Job
from sana_service.models.names import ModelName

NEW_JOB_WEIGHT = 0.2
"""Share of the newest job in the average: about the last ten jobs count."""


class Costs:
    """Service times by model; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rates: dict[ModelName, tuple[float, float]] = {}

    def observe(self, job: Job, timings: Mapping[str, float]) -> None:
        """Learn from a finished job's stage seconds (`Artifact.timings`)."""
        denoise = timings["denoise"]
        rest = sum(seconds for stage, seconds in timings.items() if stage not in {"queue", "denoise"})
        new = (denoise / _rows(job), rest / len(job.seeds))
        with self._lock:
            old = self._rates.get(job.model, new)
            self._rates[job.model] = (_blend(old[0], new[0]), _blend(old[1], new[1]))

    def predict(self, job: Job) -> float:
        """Seconds of service this job will take; zero while no job of its model has ended yet."""
        with self._lock:
            per_row, per_image = self._rates.get(job.model, (0.0, 0.0))
        return per_row * _rows(job) + per_image * len(job.seeds)


def _rows(job: Job) -> int:
    guided = job.model == "base" and job.guidance_scale > 1
    return job.num_inference_steps * len(job.seeds) * (2 if guided else 1)


def _blend(old: float, new: float) -> float:
    return old + NEW_JOB_WEIGHT * (new - old)
