"""Costs and admission: pure Python, times by hand."""

from __future__ import annotations

import time

import pytest

from sana_service.engine.admission import JobQueue
from sana_service.engine.costs import NEW_JOB_WEIGHT, Costs
from sana_service.engine.errors import DeadlineOutOfReach, QueueFull
from tests.pairs import job

TIMINGS = {"queue": 100.0, "text": 0.1, "denoise": 3.6, "decode": 0.2, "safety": 0.0, "resize": 0.1}


def test_without_a_finished_job_nothing_is_predicted():
    assert Costs().predict(job()) == 0.0


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        # 3.6 s for 18 steps with guidance: 0.1 s a row; 0.4 s for the rest of an image.
        ({"num_inference_steps": 18}, 4.0),
        ({"num_inference_steps": 9}, 2.2),
        ({"num_inference_steps": 18, "guidance_scale": 1.0}, 2.2),
        ({"num_inference_steps": 18, "seeds": (1, 2)}, 8.0),
        ({"model": "sprint"}, 0.0),
    ],
)
def test_time_grows_with_rows_and_images(changes, seconds):
    costs = Costs()
    costs.observe(job(num_inference_steps=18), TIMINGS)
    assert costs.predict(job(**changes)) == pytest.approx(seconds)


def test_new_jobs_move_the_average():
    costs = Costs()
    one = job(num_inference_steps=18)
    costs.observe(one, TIMINGS)
    costs.observe(one, {**TIMINGS, "denoise": 7.2})
    assert costs.predict(one) == pytest.approx(4.0 + NEW_JOB_WEIGHT * 3.6)


def loaded_queue(max_queue: int) -> JobQueue:
    """Open, one loop, and each 18-step job known to take four seconds."""
    costs = Costs()
    costs.observe(job(num_inference_steps=18), TIMINGS)
    queue = JobQueue(max_queue, 1, costs)
    queue.open()
    return queue


def test_room_is_for_the_waiting_and_one_for_each_idle_loop():
    queue = loaded_queue(max_queue=2)
    for _ in range(3):
        queue.put(job(num_inference_steps=18))
    with pytest.raises(QueueFull):
        queue.put(job(num_inference_steps=18))
    assert queue.take() is not None
    with pytest.raises(QueueFull) as refused:
        queue.put(job(num_inference_steps=18))
    # The job on the device began just now: room comes when it ends.
    assert refused.value.retry_after_seconds == pytest.approx(4.0, abs=0.5)


def test_a_deadline_that_the_jobs_before_it_use_up_is_refused_at_once():
    queue = loaded_queue(max_queue=8)
    for _ in range(3):
        queue.put(job(num_inference_steps=18))
    # Twelve seconds of work are before it.
    with pytest.raises(DeadlineOutOfReach) as refused:
        queue.put(job(num_inference_steps=18, deadline=time.monotonic() + 10))
    assert refused.value.retry_after_seconds == pytest.approx(2.0, abs=0.5)
    queue.put(job(num_inference_steps=18, deadline=time.monotonic() + 13))


def test_an_idle_device_takes_any_job():
    """Also one that is predicted to be late: the prediction may be wrong."""
    queue = loaded_queue(max_queue=8)
    queue.put(job(num_inference_steps=18, deadline=time.monotonic() + 1))
    assert queue.waiting == 1


def test_a_closed_queue_hands_out_the_rest_and_then_nothing():
    queue = loaded_queue(max_queue=8)
    queue.put(job(seeds=(7,)))
    queue.close("draining")
    ticket = queue.take()
    assert ticket is not None
    assert ticket.job.seeds == (7,)
    assert not queue.wait_empty(0)
    queue.done(ticket)
    assert queue.wait_empty(0)
    assert queue.take() is None
