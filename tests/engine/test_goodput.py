"""More than a device can do: as much as it can, no promise that it does not keep, and soon well again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import pytest

from sana_service.engine.errors import DeadlineExceeded, QueueFull
from sana_service.engine.job import Artifact
from sana_service.engine.limits import Limits
from tests.engine.simulated import SimulatedEngine, SimulatedStages
from tests.pairs import job

pytestmark = pytest.mark.timing

STEP_SECONDS = 0.03
"""Long beside what the loop and the clients take from each other on a machine of two cores."""
STEPS = 2
DEADLINE_SECONDS = 40 * STEP_SECONDS
CAPACITY = 1 / (STEP_SECONDS * STEPS)
"""Jobs a second, where they run one by one."""
ONE_BY_ONE = Limits(batch_cells={"base": 1024, "sprint": 1024}, seats={"base": 4, "sprint": 4})


@dataclass
class Outcome:
    """Of one job.

    Args:
        due: seconds from the start of the load.
        done: likewise; 0 where it has no picture.
        refused: whether it was told so at once.
        told: the Retry-After.
    """

    due: float
    done: float = 0.0
    refused: bool = False
    told: float = 0.0
    expired: bool = False


def load(engine: SimulatedEngine, dues: Sequence[float]) -> list[Outcome]:
    """Submit a job at each of these times, whatever became of the others."""
    started = time.perf_counter()
    outcomes = [Outcome(due) for due in dues]
    waiting = threading.Semaphore(0)

    def finish(future: Future[Artifact], outcome: Outcome) -> None:
        error = future.exception()
        if error is None:
            outcome.done = time.perf_counter() - started
        outcome.expired = isinstance(error, DeadlineExceeded)
        waiting.release()

    for outcome in outcomes:
        time.sleep(max(0.0, started + outcome.due - time.perf_counter()))
        try:
            one = job(model="sprint", num_inference_steps=STEPS, deadline=time.monotonic() + DEADLINE_SECONDS)
            future = engine.queue.put(one)
        except QueueFull as error:
            outcome.refused, outcome.told = True, error.retry_after_seconds
            waiting.release()
        else:
            future.add_done_callback(partial(finish, outcome=outcome))
    for _ in outcomes:
        assert waiting.acquire(timeout=30)
    return outcomes


def poisson(rate: float, start: float, end: float, dice: random.Random) -> list[float]:
    dues, due = [], start
    while (due := due + dice.expovariate(rate)) < end:
        dues.append(due)
    return dues


@pytest.mark.parametrize("factor", [2, 10])
def test_overload_costs_no_goodput_and_passes_with_its_cause(factor: int) -> None:
    dice = random.Random(factor)
    spike, after = 160 * STEP_SECONDS, 200 * STEP_SECONDS
    with SimulatedEngine([SimulatedStages(STEP_SECONDS)], limits=ONE_BY_ONE) as engine:
        load(engine, [STEP_SECONDS * i for i in range(20)])  # nothing can be predicted before something was done
        calm = poisson(0.4 * CAPACITY, spike, spike + after, dice)
        outcomes = load(engine, [*poisson(factor * CAPACITY, 0.0, spike, dice), *calm])
    begun = 50 * STEP_SECONDS
    done = [one for one in outcomes if begun < one.done <= spike]
    assert len(done) / (spike - begun) >= 0.85 * _capacity_of_this_machine()
    # almost all that was promised was kept
    admitted = [one for one in outcomes if not one.refused]
    assert sum(one.expired for one in admitted) <= 0.1 * len(admitted)
    assert all(one.told >= 1.0 for one in outcomes if one.refused)
    # well again as soon as what was admitted before is done
    late = [one for one in outcomes if one.due > spike + DEADLINE_SECONDS + 10 * STEP_SECONDS]
    assert len(late) > 10
    assert [one for one in late if one.refused or one.expired] == []


def _capacity_of_this_machine() -> float:
    """A sleep takes longer than it says, and the loop's threads take turns: what a full queue gets done a second."""
    with SimulatedEngine([SimulatedStages(STEP_SECONDS)], limits=ONE_BY_ONE) as engine:
        started = time.perf_counter()
        futures = [engine.queue.put(job(model="sprint", num_inference_steps=STEPS)) for _ in range(40)]
        for future in futures:
            future.result(30)
        return 40 / (time.perf_counter() - started)
