"""What an observer is told, and that being told changes no picture."""

from __future__ import annotations

import numpy as np
import pytest

from sana_service.engine.observer import preview_steps
from tests.pairs import Recorder, job, local_engine


@pytest.mark.parametrize(
    ("steps", "previews", "expected"),
    [(18, 0, ()), (18, 1, (9,)), (18, 3, (5, 9, 14)), (2, 1, (1,)), (2, 3, (1,)), (1, 3, ()), (3, 2, (1, 2))],
)
def test_previews_are_spread_over_the_steps(steps, previews, expected):
    assert preview_steps(steps, previews) == expected


@pytest.mark.parametrize("model", ["base", "sprint"])
def test_each_stage_and_step_is_told(model, engine):
    watch = Recorder()
    engine.submit(job(model=model, seeds=(1, 2), num_inference_steps=3, observer=watch)).result(60)
    assert [(at.stage, at.steps_done, at.steps) for at in watch.told] == [
        ("text", 0, 6),
        ("denoise", 0, 6),
        *[("denoise", done, 6) for done in range(1, 7)],
        ("decode", 6, 6),
        ("safety", 6, 6),
        ("resize", 6, 6),
    ]
    assert watch.shown == []


@pytest.mark.parametrize("model", ["base", "sprint"])
def test_previews_have_the_aspect_and_approach_the_picture(model, engine):
    watch = Recorder(previews=3)
    plain = job(model=model, width=1280, height=640, num_inference_steps=8, seeds=(1, 2))
    watched = job(model=model, width=1280, height=640, num_inference_steps=8, seeds=(1, 2), observer=watch)
    expected = engine.submit(plain).result(60).pixels
    pixels = engine.submit(watched).result(60).pixels
    assert np.array_equal(pixels, expected)
    assert [(shown.image, shown.index) for shown in watch.shown] == [(i, k) for k in range(3) for i in range(2)]
    assert {shown.pixels.shape for shown in watch.shown} == {(256, 512, 3)}
    # the mean of 2.5 x 2.5 blocks is near the picture's own colours
    target = pixels[0].reshape(128, 5, 256, 5, 3).mean((1, 3))
    distances = [np.abs(shown.pixels[::2, ::2].astype(float) - target).mean() for shown in watch.shown[::2]]
    assert distances[0] >= distances[2]


def test_a_flagged_preview_is_black(models):
    class Always:
        def probabilities(self, images):
            return [1.0] * len(images)

    engine = local_engine(models, safety=Always(), nsfw_threshold=0.5, max_queue=1)
    engine.start()
    try:
        watch, unchecked = Recorder(previews=1), Recorder(previews=1)
        engine.submit(job(num_inference_steps=2, observer=watch)).result(60)
        engine.submit(job(num_inference_steps=2, observer=unchecked, check_safety=False)).result(60)
    finally:
        engine.stop()
    assert not watch.shown[0].pixels.any()
    assert unchecked.shown[0].pixels.any()


def test_a_waiting_job_knows_its_position(models):
    engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=8)
    jobs = [job(num_inference_steps=50, seeds=(1, 2)), job(), job()]
    engine.start()
    futures = [engine.submit(one) for one in jobs]
    positions = [engine.position(one) for one in jobs]
    for future in futures:
        future.cancel()
    assert positions in ([None, 0, 1], [0, 1, 2])
    assert engine.position(job()) is None
    engine.stop()
