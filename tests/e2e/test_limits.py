"""A small queue and a short deadline, over HTTP; and a client that leaves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests import services

SLOW = {"prompt": "a", "image_size": "square_hd", "num_inference_steps": 50, "num_images": 4}
QUICK = {"prompt": "a", "image_size": "square", "num_inference_steps": 1}


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory, pair_variables: dict[str, str]) -> Iterator[services.Server]:
    variables = {**pair_variables, "SANA_MAX_QUEUE": "1", "SANA_REQUEST_TIMEOUT_SECONDS": "3"}
    with services.server(tmp_path_factory.mktemp("small"), variables) as server:
        yield server


def test_a_full_queue_is_429_and_a_late_request_504(small_server: services.Server) -> None:
    with ThreadPoolExecutor(6) as pool, small_server.client() as http:
        heavy = {**SLOW, "image_size": {"width": 4096, "height": 4096}, "output_format": "png"}
        answers = list(pool.map(lambda _: http.post("/generate", json=heavy), range(6)))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) <= {200, 429, 504}
        # one waits behind one that runs out of time, and all the others find no room
        assert statuses[429] >= 1
        assert statuses[504] >= 1
        for answer in answers:
            if answer.status_code != 200:
                assert answer.headers["x-fal-billable-units"] == "0"
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
        # nothing of the refused ones stays behind
        assert http.get("/readyz").status_code == 200
        assert http.post("/sprint", json=QUICK).status_code == 200


@pytest.mark.timing
def test_the_device_is_free_again_when_a_client_leaves(small_server: services.Server) -> None:
    with small_server.client() as http:
        for _ in range(2):  # so that the costs of a quick job are known, too
            http.post("/sprint", json=QUICK)
        with pytest.raises(httpx.ReadTimeout):
            http.post("/generate", json=SLOW, timeout=0.5)
        started = time.perf_counter()
        while (answer := http.post("/sprint", json=QUICK)).status_code == 429:
            assert time.perf_counter() - started < 2.0
        assert answer.status_code == 200
        assert answer.json()["timings"]["queue"] < 2.0
        assert time.perf_counter() - started < 2.5
