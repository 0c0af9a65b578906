"""The batcher by itself, with simulated costs: order, bounds, shares, and nobody left behind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sana_service.engine.batcher import STEPS_BEFORE_GROWTH, Batcher, BatchKey
from sana_service.models.names import ModelName

CELLS: dict[ModelName, int] = {"base": 4 * 1024, "sprint": 8 * 1024}


@dataclass(eq=False)
class Row:
    """A row that wants so many steps."""

    key: BatchKey
    left: int = 1
    number: int = 0


def row(model: ModelName = "base", steps: int = 1, side: int = 32, *, guided: bool = True, number: int = 0) -> Row:
    return Row(BatchKey(model, side, side, guided and model == "base"), steps, number)


def seconds_of(batch: list[Row]) -> float:
    """A base image takes twice as long as one of sprint, and batches are a little cheaper than their images."""
    return (0.1 + len(batch)) * batch[0].key.forwards


def run_step(batcher: Batcher[Row]) -> list[Row]:
    batch = batcher.next_batch()
    for one in batch:
        one.left -= 1
    if batch:
        batcher.charge(batch[0].key.model, seconds_of(batch))
    batcher.keep(lambda one: one.left > 0)
    return batch


def test_rows_that_can_share_a_pass_do_and_the_others_wait():
    batcher: Batcher[Row] = Batcher(CELLS)
    first, other_size, unguided, second = row(), row(side=16), row(guided=False), row()
    batcher.add([first, other_size, unguided, second])
    assert [run_step(batcher) for _ in range(3)] == [[first, second], [other_size], [unguided]]
    assert batcher.next_batch() == []


@pytest.mark.parametrize(("side", "images"), [(32, 4), (16, 16), (64, 1), (128, 1)])
def test_a_batch_is_bounded_by_its_cells_but_one_image_always_fits(side, images):
    batcher: Batcher[Row] = Batcher(CELLS)
    batcher.add([row(side=side) for _ in range(20)])
    assert len(batcher.next_batch()) == images


def test_a_row_joins_at_the_next_step_and_leaves_at_its_last():
    batcher: Batcher[Row] = Batcher(CELLS)
    long = row(steps=4)
    batcher.add([long])
    sizes = [len(run_step(batcher))]
    batcher.add([row(steps=2)])
    sizes += [len(run_step(batcher)) for _ in range(3)]
    assert sizes == [1, 2, 2, 1]


def test_sprint_runs_between_the_steps_of_base_and_its_steps_follow_each_other():
    batcher: Batcher[Row] = Batcher(CELLS)
    batcher.add([row(steps=50) for _ in range(8)])
    for _ in range(5):
        run_step(batcher)
    batcher.add([row("sprint", steps=2)])
    assert [run_step(batcher)[0].key.model for _ in range(3)] == ["sprint", "sprint", "base"]


def test_endpoints_that_are_both_busy_get_the_same_time():
    batcher: Batcher[Row] = Batcher(CELLS)
    served: dict[str, float] = dict.fromkeys(CELLS, 0.0)
    for _ in range(600):
        for model in CELLS:
            missing = 8 - sum(one.key.model == model for one in batcher.rows)
            batcher.add([row(model, steps=18 if model == "base" else 2) for _ in range(missing)])
        batch = run_step(batcher)
        served[batch[0].key.model] += seconds_of(batch)
    assert served["base"] == pytest.approx(served["sprint"], rel=0.05)


def test_idle_time_earns_no_credit():
    batcher: Batcher[Row] = Batcher(CELLS)
    batcher.add([row("sprint", steps=1000)])
    for _ in range(500):
        run_step(batcher)
    batcher.add([row(steps=1000)])
    models = [run_step(batcher)[0].key.model for _ in range(40)]
    assert models.count("base") <= 20


def test_after_a_shortage_of_memory_batches_are_small_for_some_time():
    batcher: Batcher[Row] = Batcher(CELLS)
    batcher.add([row(steps=10**6) for _ in range(8)])
    batcher.shrink(row().key, 1)
    sizes = [len(run_step(batcher)) for _ in range(3 * STEPS_BEFORE_GROWTH)]
    assert sizes[: STEPS_BEFORE_GROWTH - 1] == [1] * (STEPS_BEFORE_GROWTH - 1)
    assert sizes[STEPS_BEFORE_GROWTH] == 2
    assert sizes[-1] == 4


rows = st.builds(
    row,
    model=st.sampled_from(["base", "sprint"]),
    steps=st.integers(1, 20),
    side=st.sampled_from([16, 32, 64]),
    guided=st.booleans(),
)
events = st.lists(st.one_of(rows, st.just("step"), st.integers(0, 30)), max_size=80)


@given(events)
def test_every_row_gets_its_steps_or_is_dropped_and_batches_keep_the_rules(happenings):
    """Rows come, run and are dropped in any order; afterwards the rest runs to its end."""
    batcher: Batcher[Row] = Batcher(CELLS)
    came: list[Row] = []
    dropped: set[int] = set()
    wanted: dict[int, int] = {}
    got: Counter[int] = Counter()

    def step() -> None:
        waiting = batcher.rows
        batch = run_step(batcher)
        assert bool(batch) == bool(waiting)  # never waits for a fuller batch
        assert len({one.key for one in batch}) <= 1
        if not batch:
            return
        key = batch[0].key
        alike = [one for one in waiting if one.key == key]
        assert batch == alike[: len(batch)]  # order within a class
        assert len(batch) == min(len(alike), max(1, CELLS[key.model] // (key.height * key.width)))
        oldest = next(one for one in waiting if one.key.model == key.model)
        assert batch[0] is oldest  # nothing starves within an endpoint
        got.update(one.number for one in batch)

    def drop(number: int) -> None:
        dropped.add(number)
        batcher.keep(lambda one: one.number != number)

    for happening in happenings:
        if isinstance(happening, Row):
            newcomer = Row(happening.key, happening.left, len(came))
            came.append(newcomer)
            wanted[newcomer.number] = newcomer.left
            batcher.add([newcomer])
        elif happening == "step":
            step()
        else:
            drop(happening)
    for _ in range(sum(wanted.values())):
        step()
    assert len(batcher) == 0
    for one in came:
        assert got[one.number] == wanted[one.number] or one.number in dropped
        assert got[one.number] <= wanted[one.number]


@given(
    base_rows=st.integers(1, 12),
    base_steps=st.integers(1, 50),
    steps_before=st.integers(0, 30),
    steps=st.integers(1, 2),
)
def test_a_sprint_image_waits_at_most_two_base_steps_in_all(base_rows, base_steps, steps_before, steps):
    batcher: Batcher[Row] = Batcher(CELLS)
    batcher.add([row(steps=base_steps + steps_before) for _ in range(base_rows)])
    for _ in range(steps_before):
        run_step(batcher)
    sprint = row("sprint", steps=steps)
    batcher.add([sprint])
    between = 0
    while sprint.left:
        between += run_step(batcher)[0] is not sprint
    # The step that is running when it comes is the other one.
    assert between <= 1


@given(st.lists(st.sampled_from(["base", "sprint"]), min_size=1, max_size=300))
def test_no_endpoint_falls_behind_by_more_than_a_step_of_each(arrivals):
    """Whenever both are busy, what one was given since then exceeds the other's share by two steps at most."""
    batcher: Batcher[Row] = Batcher(CELLS)
    since_both: dict[str, float] = dict.fromkeys(CELLS, 0.0)
    longest = {model: seconds_of([row(model)] * (CELLS[model] // 1024)) for model in CELLS}
    for model in arrivals:
        batcher.add([row(model, steps=3)])
        if len({one.key.model for one in batcher.rows}) < 2:
            since_both = dict.fromkeys(CELLS, 0.0)
        batch = run_step(batcher)
        since_both[batch[0].key.model] += seconds_of(batch)
        if len({one.key.model for one in batcher.rows}) == 2:
            gap = since_both["base"] - since_both["sprint"]
            assert abs(gap) <= 2 * sum(longest.values())
