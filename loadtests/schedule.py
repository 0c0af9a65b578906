"""From a scenario to the requests of one run: when each is due and what it asks. Pure and seeded.

The times come from one generator, everything else of request `i` from a generator of its own, seeded
by (scenario seed, repeat, i). So request `i` is the same whichever process sends it, and in a closed
loop, where nobody knows beforehand how many there will be.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from loadtests import arrivals, scenario
from loadtests.contract import Endpoint, Expected, size_field
from loadtests.prompts import Prompts

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Planned:
    """A request to be sent.

    Args:
        index: its number in the run.
        at_seconds: when it is due, from the start of the run; None in a closed loop.
        endpoint: "generate" or "sprint".
        body: the JSON object.
        expected: what the answer has to say.
        cancel_after_seconds: the client leaves then, None if it stays.
        read_bytes_per_second: how fast the answer is read, None for at once.
    """

    index: int
    at_seconds: float | None
    endpoint: Endpoint
    body: dict[str, Any]
    expected: Expected
    cancel_after_seconds: float | None = None
    read_bytes_per_second: int | None = None


@dataclass(frozen=True)
class Source:
    """Makes the requests of one run.

    Args:
        load: the scenario.
        repeat: number of the run, from 0; each has times and requests of its own.
        mark: stands in every prompt, so that a server that has seen the scenario before cannot know it.
    """

    load: scenario.Load
    repeat: int
    mark: str

    def planned(self, index: int, at_seconds: float | None = None) -> Planned:
        """Request number `index`."""
        draw = random.Random(f"{self.load.seed}/{self.repeat}/{index}")
        wanted = self._class(index, draw)
        prompt = Prompts(reuse=wanted.prompt_reuse, mark=self.mark).draw(draw)
        seed = {"distinct": draw.getrandbits(32), "fixed": wanted.seed, "server": None}[wanted.seed_mode]
        leaves, reads_slowly = draw.random() < wanted.cancel_share, draw.random() < wanted.slow_share
        cancel_after = draw.uniform(0, 2 * wanted.cancel_after_seconds)
        width, height = wanted.size
        return Planned(
            index=index,
            at_seconds=at_seconds,
            endpoint=wanted.endpoint,
            body={
                "prompt": prompt,
                "image_size": size_field(wanted.image_size),
                "num_inference_steps": wanted.steps,
                "guidance_scale": wanted.guidance_scale,
                "num_images": wanted.num_images,
                "output_format": wanted.output_format,
                "enable_safety_checker": wanted.enable_safety_checker,
                "seed": seed,
            },
            expected=Expected(prompt, width, height, wanted.num_images, wanted.output_format, seed),
            cancel_after_seconds=cancel_after if leaves else None,
            read_bytes_per_second=wanted.slow_bytes_per_second if reads_slowly else None,
        )

    def _class(self, index: int, draw: random.Random) -> scenario.RequestClass:
        """Which of the mix request `index` is.

        In an open loop each is drawn, so that every class has arrivals of the scenario's process. In a closed one
        that would make the rate of a class a matter of luck: there any stretch of requests holds the classes in
        their shares, as far as whole numbers go (multiples of the golden ratio are spread evenly).
        """
        share = draw.random()
        if isinstance(self.load, scenario.ClosedLoop):
            share = (random.Random(f"{self.load.seed}/{self.repeat}").random() + index * _GOLDEN) % 1.0
        weights = list(accumulate(each.weight for each in self.load.requests))
        return self.load.requests[bisect(weights, share * weights[-1], hi=len(weights) - 1)]

    def times(self) -> arrivals.Times:
        """When the requests of an open loop are due.

        Raises:
            ScenarioError: a trace cannot be read.
        """
        if isinstance(self.load, scenario.ClosedLoop):
            raise TypeError("a closed loop has no times")
        generator = np.random.default_rng(np.random.SeedSequence((self.load.seed, self.repeat)))
        return arrival_times(self.load.arrivals, self.load.duration_seconds, generator)


def arrival_times(
    process: scenario.Arrivals, duration_seconds: float, generator: np.random.Generator
) -> arrivals.Times:
    """The times of a scenario's arrival process.

    Raises:
        ScenarioError: a trace cannot be read.
    """
    if isinstance(process, scenario.Trace):
        return arrivals.replayed(scenario.read_trace(process.file), process.speed, duration_seconds)
    intervals: arrivals.Intervals = arrivals.exponential
    if isinstance(process, scenario.Constant):
        intervals = arrivals.constant
    elif isinstance(process, scenario.Gamma):
        intervals = arrivals.Gamma(process.burstiness)
    return arrivals.arrival_times(rate_of(process, duration_seconds), intervals, duration_seconds, generator)


def rate_of(
    process: scenario.Poisson | scenario.Gamma | scenario.Constant | scenario.Step | scenario.Spike | scenario.Ramp,
    duration_seconds: float,
) -> arrivals.Rate:
    """The rate over time of every process but a trace."""
    if isinstance(process, scenario.Step):
        return arrivals.steps(process.rates, process.seconds_each)
    if isinstance(process, scenario.Spike):
        return arrivals.spike(process.rate, process.peak_rate, process.at_seconds, process.for_seconds)
    if isinstance(process, scenario.Ramp):
        return arrivals.ramp(process.first_rate, process.last_rate, duration_seconds)
    return arrivals.steady(process.rate)
