"""Costs and admission: pure Python, times by hand."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from sana_service.engine.admission import JobQueue
from sana_service.engine.costs import NEW_WEIGHT, Costs, megapixel_steps, row_count
from sana_service.engine.errors import DeadlineOutOfReach, QueueFull
from sana_service.engine.ticket import Ticket
from tests.pairs import job


def costs() -> Costs:
    """A tenth of a second a row of base, 0.4 s for the rest of its image; a quarter of that for sprint."""
    costs = Costs()
    costs.observe_step("base", rows=2, seconds=0.2)
    costs.observe_image("base", 0.4)
    costs.observe_step("sprint", rows=1, seconds=0.025)
    costs.observe_image("sprint", 0.1)
    return costs


def test_before_the_first_measurement_nothing_is_predicted():
    assert Costs().predict(job()) == 0.0


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"num_inference_steps": 18}, 4.0),
        ({"num_inference_steps": 9}, 2.2),
        ({"num_inference_steps": 18, "guidance_scale": 1.0}, 2.2),
        ({"num_inference_steps": 18, "seeds": (1, 2)}, 8.0),
        ({"model": "sprint", "num_inference_steps": 2, "seeds": (1, 2, 3)}, 0.45),
    ],
)
def test_time_grows_with_rows_and_images(changes, seconds):
    assert costs().predict(job(**changes)) == pytest.approx(seconds)


def test_new_measurements_move_the_average():
    learned = costs()
    learned.observe_step("base", rows=1, seconds=0.6)
    assert learned.denoise("base", 10) == pytest.approx(10 * (0.1 + NEW_WEIGHT * 0.5))


def test_a_slow_start_is_forgotten_and_what_nobody_could_expect_teaches_nothing():
    """The first step compiles its kernels, and the first job came before any step."""
    learned = Costs()
    learned.observe_job(expected=0.0, seconds=9.0)
    learned.observe_step("base", rows=2, seconds=4.0)
    learned.observe_step("base", rows=2, seconds=0.2)
    assert learned.denoise("base", 10) == pytest.approx(1.0)
    # later a quick one is an outlier like any other
    learned.observe_step("base", rows=2, seconds=0.02)
    assert learned.denoise("base", 10) == pytest.approx(1.0 - NEW_WEIGHT * 0.9)
    assert (learned.stretch, learned.error) == (1.0, 0.0)


def test_a_job_beside_another_says_little_of_the_next():
    """An ordinary start: a base job alone, then a sprint beside it. Only the ratio of all of them counts."""
    learned = Costs()
    learned.observe_job(expected=3.0, seconds=3.0)
    learned.observe_job(expected=0.5, seconds=1.6)
    assert learned.stretch == pytest.approx(2.86 / 2.75)


def test_predictions_are_stretched_where_jobs_end_later_than_predicted():
    """What lies between steps is in no step's time; haste is no reason to promise more."""
    learned = costs()
    learned.observe_job(expected=2.0, seconds=3.0)
    assert learned.stretch == pytest.approx(1.5)
    assert learned.predict(job(num_inference_steps=18)) == pytest.approx(6.0)
    for _ in range(100):
        learned.observe_job(expected=2.0, seconds=1.0)
    assert learned.stretch == 1.0
    learned.observe_job(expected=0.1, seconds=1000.0)
    assert learned.stretch == 4.0


def test_a_deadline_must_leave_room_for_the_error_of_predictions():
    learned = costs()
    learned.observe_job(expected=2.0, seconds=2.0)
    queue = open_queue(max_queue=8, costs=learned)
    queue.put(job(num_inference_steps=18))
    take(queue)
    # 3.6 seconds before it, and 4.0 of its own: a twentieth more, where predictions have been right
    queue.put(job(num_inference_steps=18, deadline=time.monotonic() + 8.1))
    for _ in range(100):
        for seconds in (1.5, 2.5):
            learned.observe_job(expected=2.0, seconds=seconds)
    assert learned.error == pytest.approx(0.5, abs=0.05)
    with pytest.raises(DeadlineOutOfReach):
        queue.put(job(model="sprint", deadline=time.monotonic() + 1.0))


def test_a_queue_learns_from_late_jobs_and_not_from_cancelled_ones():
    learned = costs()
    queue = open_queue(max_queue=8, costs=learned)
    for cancelled in (True, False):
        queue.put(job(num_inference_steps=18))
        ticket = take(queue)
        ticket.submitted_at -= 8.0
        ticket.rows_left = ticket.images_left = 0
        if cancelled:
            ticket.job.cancel()
        queue.done(ticket)
        assert learned.stretch == pytest.approx(1.0 if cancelled else 2.0, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"num_inference_steps": 3}, 6),
        ({"num_inference_steps": 3, "guidance_scale": 1.0}, 3),
        ({"num_inference_steps": 3, "seeds": (1, 2)}, 12),
        ({"model": "sprint", "num_inference_steps": 2, "guidance_scale": 9.0}, 2),
    ],
)
def test_rows_of_a_job(changes, rows):
    assert row_count(job(**changes)) == rows


def open_queue(max_queue: int, **options: Any) -> JobQueue:
    queue = JobQueue(max_queue, **{"loops": 1, "seats": {"base": 1, "sprint": 1}, "costs": costs(), **options})
    queue.open()
    return queue


def take(queue: JobQueue, loop: int = 0) -> Ticket:
    ticket = queue.take(loop)
    assert ticket is not None
    return ticket


def test_room_is_for_the_waiting_and_for_each_free_seat():
    queue = open_queue(max_queue=2)
    for _ in range(3):
        queue.put(job(num_inference_steps=18))
    with pytest.raises(QueueFull):
        queue.put(job(num_inference_steps=18))
    take(queue)
    with pytest.raises(QueueFull) as refused:
        queue.put(job(num_inference_steps=18))
    # The job on the device began just now: room comes when it ends.
    assert refused.value.retry_after_seconds == pytest.approx(4.0)


def test_a_lane_without_seats_does_not_hold_up_the_other():
    queue = open_queue(max_queue=8)
    for _ in range(2):
        queue.put(job(num_inference_steps=18))
    queue.put(job(model="sprint"))
    assert [take(queue).job.model for _ in range(2)] == ["base", "sprint"]
    assert (queue.waiting, queue.running) == (1, 2)


def test_jobs_that_wait_for_either_endpoint_share_the_room():
    queue = open_queue(max_queue=1)
    for model in ("base", "sprint", "base"):
        queue.put(job(model=model))
    with pytest.raises(QueueFull):
        queue.put(job(model="sprint"))


def test_a_job_with_more_images_than_seats_runs_alone():
    queue = open_queue(max_queue=8, seats={"base": 3, "sprint": 3})
    for images in (2, 4, 1):
        queue.put(job(seeds=tuple(range(images))))
    first = take(queue)
    taken: list[Ticket] = []
    taker = threading.Thread(target=lambda: taken.append(take(queue)))
    taker.start()
    taker.join(0.05)
    assert not taken  # not even the one image behind it: a lane keeps its order
    queue.done(first)
    taker.join(10)
    assert [len(ticket.job.seeds) for ticket in taken] == [4]


def test_each_loop_has_its_own_seats():
    queue = open_queue(max_queue=0, loops=2)
    first, second = queue.put(job()), queue.put(job())
    with pytest.raises(QueueFull):
        queue.put(job())
    assert [take(queue, loop).future for loop in (0, 1)] == [first, second]


def test_a_deadline_that_the_jobs_before_it_use_up_is_refused_at_once():
    queue = open_queue(max_queue=8)
    for _ in range(3):
        queue.put(job(num_inference_steps=18))
    # Three times 3.6 seconds of denoising are before it, while the other stages run; itself it takes 4.0 seconds; a
    # twentieth of the 14.8 must be left over.
    with pytest.raises(DeadlineOutOfReach) as refused:
        queue.put(job(num_inference_steps=18, deadline=time.monotonic() + 13))
    assert refused.value.retry_after_seconds == pytest.approx(2.54, abs=0.1)
    with pytest.raises(DeadlineOutOfReach):
        queue.put(job(num_inference_steps=18, deadline=time.monotonic() + 15.3))
    queue.put(job(num_inference_steps=18, deadline=time.monotonic() + 15.7))


def test_a_request_that_takes_longer_than_it_has_is_told_when_the_device_is_idle():
    queue = open_queue(max_queue=8)
    queue.put(job(num_inference_steps=18))
    take(queue)
    hopeless = {"num_inference_steps": 50, "seeds": (1, 2, 3, 4)}
    with pytest.raises(DeadlineOutOfReach) as refused:
        queue.put(job(**hopeless, deadline=time.monotonic() + 10))
    assert refused.value.retry_after_seconds == pytest.approx(3.6)


def test_a_free_seat_on_a_busy_device_is_no_use_to_a_deadline_that_cannot_be_met():
    queue = open_queue(max_queue=8, seats={"base": 4, "sprint": 4})
    queue.put(job(num_inference_steps=18))
    take(queue)
    with pytest.raises(DeadlineOutOfReach):
        queue.put(job(num_inference_steps=18, deadline=time.monotonic() + 7))
    queue.put(job(num_inference_steps=18, deadline=time.monotonic() + 8.1))


@pytest.mark.parametrize(
    ("changes", "work"),
    [
        ({"num_inference_steps": 18}, 18.874368),
        ({"num_inference_steps": 18, "seeds": (1, 2, 3)}, 56.623104),
        ({"num_inference_steps": 18, "width": 64, "height": 4096}, 18.874368),
    ],
)
def test_work_is_drawn_megapixels_times_steps(changes, work):
    assert megapixel_steps(job(**changes), drawn_pixels=1024**2) == pytest.approx(work)


def test_room_is_counted_in_work_as_well():
    """A megapixel is drawn: 20 steps of it are 20 units."""
    queue = open_queue(max_queue=8, max_work=100.0, drawn_pixels={"base": 10**6, "sprint": 10**6})
    queue.put(job(num_inference_steps=20))
    take(queue)
    for _ in range(2):
        queue.put(job(num_inference_steps=20, seeds=(1, 2)))
    assert queue.waiting_work == pytest.approx(80.0)
    with pytest.raises(QueueFull) as refused:
        queue.put(job(num_inference_steps=21))
    # The one on the device leaves after 40 rows and a picture, and the first that waits takes its seat.
    assert refused.value.retry_after_seconds == pytest.approx(40 * 0.1 + 0.4)
    with pytest.raises(QueueFull) as refused:
        queue.put(job(num_inference_steps=50, seeds=(1, 2)))
    # Both must have left the queue: another 80 rows and two pictures.
    assert refused.value.retry_after_seconds == pytest.approx(4.4 + 8.8)
    queue.put(job(num_inference_steps=20))


def test_a_job_larger_than_all_room_may_wait_alone():
    queue = open_queue(max_queue=8, max_work=10.0)
    queue.put(job(num_inference_steps=18))
    take(queue)
    queue.put(job(num_inference_steps=50, seeds=(1, 2, 3, 4)))
    with pytest.raises(QueueFull):
        queue.put(job(num_inference_steps=1))


def test_retrying_when_told_to_finds_room():
    """Time moves by hand: a step of the job on the device is one of its rows."""
    queue = open_queue(max_queue=1)
    for _ in range(2):
        queue.put(job(num_inference_steps=18))
    running = take(queue)
    with pytest.raises(QueueFull) as refused:
        queue.put(job(num_inference_steps=18))
    running.rows_left -= round((refused.value.retry_after_seconds - 0.4) / 0.1)
    assert running.rows_left == 0
    queue.done(running)
    take(queue)
    queue.put(job(num_inference_steps=18))


def test_the_prediction_counts_half_of_the_device_for_the_other_endpoint():
    queue = open_queue(max_queue=8)
    for _ in range(2):
        queue.put(job(num_inference_steps=18))
    assert queue.predicted_wait("base") == pytest.approx(7.2)
    queue.put(job(model="sprint", num_inference_steps=20))
    # Half a second of sprint: base gives as much before sprint is through, and loses as much.
    assert queue.predicted_wait("sprint") == pytest.approx(1.0)
    assert queue.predicted_wait("base") == pytest.approx(7.7)


def test_what_is_done_of_a_job_no_longer_counts():
    queue = open_queue(max_queue=8)
    queue.put(job(num_inference_steps=18))
    ticket = take(queue)
    ticket.rows_left -= 30
    assert queue.predicted_wait("base") == pytest.approx(0.6)
    ticket.job.cancel()
    assert queue.predicted_wait("base") == 0.0


def test_a_free_seat_takes_any_job():
    """Also one that is predicted to be late: the prediction may be wrong."""
    queue = open_queue(max_queue=8)
    queue.put(job(num_inference_steps=18, deadline=time.monotonic() + 1))
    assert queue.waiting == 1


class Encoding:
    """What comes after the engine, as congested as told."""

    def __init__(self, waiting: int, backlog_seconds: float) -> None:
        self.waiting = waiting
        self.backlog_seconds = backlog_seconds


def test_jobs_that_wait_to_be_encoded_take_room_and_time():
    full = open_queue(max_queue=2, downstream=Encoding(waiting=3, backlog_seconds=7.0))
    with pytest.raises(QueueFull) as refused:
        full.put(job())
    assert refused.value.retry_after_seconds == 7.0
    late = open_queue(max_queue=2, downstream=Encoding(waiting=1, backlog_seconds=7.0))
    with pytest.raises(DeadlineOutOfReach):
        late.put(job(deadline=time.monotonic() + 6))
    late.put(job(deadline=time.monotonic() + 8.2))


def test_a_closed_queue_hands_out_the_rest_and_then_nothing():
    queue = open_queue(max_queue=8)
    queue.put(job(seeds=(7,)))
    queue.close("draining")
    ticket = take(queue)
    assert ticket.job.seeds == (7,)
    assert not queue.wait_empty(0)
    queue.done(ticket)
    assert queue.wait_empty(0)
    assert queue.take(0) is None


def test_a_ticket_ends_once():
    queue = open_queue(max_queue=8)
    future = queue.put(job())
    ticket = take(queue)
    assert ticket.end(ValueError("first"))
    assert not ticket.end(ValueError("second"))
    assert str(future.exception()) == "first"
