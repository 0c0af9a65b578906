"""What work will take, learned from the work that was done. Pure Python.

Two rates per model, each an exponential moving average: denoising per transformer row (one image in one step, twice
with classifier-free guidance) and decode, safety and resize per image. What lies between the pieces of work is not in
them, so whole jobs are looked at as well: where they end later than predicted, all predictions are stretched by as
much. Admission, `Retry-After` and the metrics read them; nothing depends on their being right.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass

from sana_service.engine.job import Job
from sana_service.models.names import ModelName

NEW_WEIGHT = 0.1
"""Share of the newest measurement in an average."""

MOST_STRETCH = 4.0
"""A device that stood still for once is not believed to do so for ever."""


@dataclass
class _Average:
    """Exponential moving average; 0 before the first value.

    Args:
        starts_slowly: a first value that is more than twice the second is forgotten: the first call of a kernel
            compiles it, chooses an algorithm and fetches memory.
    """

    starts_slowly: bool = False
    value: float = 0.0
    count: int = 0

    def add(self, new: float) -> None:
        forget = self.starts_slowly and self.count == 1 and new < self.value / 2
        self.value = new if not self.count or forget else self.value + NEW_WEIGHT * (new - self.value)
        self.count += 1


class Costs:
    """Seconds of device time by model; safe for threads. Zero while nothing of a model has been measured."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._row: defaultdict[ModelName, _Average] = defaultdict(lambda: _Average(starts_slowly=True))
        self._image: defaultdict[ModelName, _Average] = defaultdict(lambda: _Average(starts_slowly=True))
        self._expected, self._taken, self._error = _Average(), _Average(), _Average()

    def observe_step(self, model: ModelName, rows: int, seconds: float) -> None:
        """A step of a batch of so many transformer rows took so long."""
        with self._lock:
            self._row[model].add(seconds / rows)

    def observe_image(self, model: ModelName, seconds: float) -> None:
        """One image's latents became pixels in so long."""
        with self._lock:
            self._image[model].add(seconds)

    def observe_job(self, expected: float, seconds: float) -> None:
        """A job that was expected to end after so long, unstretched, took so long, waiting included.

        One that came before anything was measured was expected at once, and shows nothing.
        """
        if expected <= 0:
            return
        with self._lock:
            self._error.add(abs(seconds - expected * self.stretch))
            self._expected.add(expected)
            self._taken.add(seconds)

    @property
    def stretch(self) -> float:
        """How much longer jobs take than the sum of their measured parts, 1 or more."""
        if not self._expected.value:
            return 1.0
        return min(MOST_STRETCH, max(1.0, self._taken.value / self._expected.value))

    @property
    def error(self) -> float:
        """Seconds that jobs end earlier or later than predicted, a mean."""
        return self._error.value

    def step(self, model: ModelName, rows: int) -> float:
        """Seconds of the device for so many transformer rows, in batches as of late."""
        return self._row[model].value * rows

    def denoise(self, model: ModelName, rows: int) -> float:
        """Seconds until so many transformer rows are done, what lies between steps included."""
        return self.step(model, rows) * self.stretch

    def finish(self, model: ModelName, images: int) -> float:
        """Seconds from latents to pixels for so many images."""
        return self._image[model].value * images * self.stretch

    def predict(self, job: Job) -> float:
        """Seconds a job takes on an idle device."""
        return self.denoise(job.model, row_count(job)) + self.finish(job.model, len(job.seeds))


def is_guided(job: Job) -> bool:
    """Whether each image of a job takes two transformer rows a step."""
    return job.model == "base" and job.guidance_scale > 1


def row_count(job: Job) -> int:
    """Transformer rows of a whole job."""
    return job.num_inference_steps * len(job.seeds) * (2 if is_guided(job) else 1)


def megapixel_steps(job: Job, drawn_pixels: int) -> float:
    """The unit that the queue's room is counted in.

    Args:
        drawn_pixels: of one picture, as it is denoised; resizing is not counted.
    """
    return drawn_pixels * job.num_inference_steps * len(job.seeds) / 1e6
