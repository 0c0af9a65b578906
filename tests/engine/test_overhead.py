"""What the engine adds to the compute, with stages that take no time: queue, batcher, hand-overs."""

from __future__ import annotations

import pytest

from tests.performance.engine import loop_overhead
from tests.performance.overhead import GOAL_OVERHEAD_SECONDS

pytestmark = pytest.mark.timing


@pytest.mark.parametrize(("model", "steps"), [("base", 18), ("sprint", 2)])
def test_a_job_costs_the_engine_at_most_five_milliseconds(model, steps):
    assert min(loop_overhead(model, steps, count=50) for _ in range(3)) <= GOAL_OVERHEAD_SECONDS
