"""SIGTERM: what was accepted is answered, what comes later is refused, and the process ends with 0."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests import services


def test_a_drain_loses_nothing(tmp_path: Path, pair_variables: dict[str, str]) -> None:
    slow = {"prompt": "a", "image_size": "square", "num_inference_steps": 50, "num_images": 4}
    with (
        services.server(tmp_path, pair_variables) as server,
        ThreadPoolExecutor(3) as pool,
        server.client() as http,
    ):
        accepted = [pool.submit(http.post, "/generate", json=slow) for _ in range(3)]
        deadline = time.monotonic() + 30
        while "bentoml_service_request_in_progress" not in (text := http.get("/metrics").text) or not any(
            line.endswith(" 3.0")
            for line in text.splitlines()
            if "request_in_progress{" in line and "/generate" in line
        ):
            assert time.monotonic() < deadline, text
        # the connection is open before the signal: the listening socket closes later
        assert http.get("/readyz").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        while (ready := http.get("/readyz")).status_code == 200:
            assert time.monotonic() < deadline
        assert ready.status_code == 503
        assert int(ready.headers["retry-after"]) >= 1
        assert http.get("/livez").status_code == 200
        refused = http.post("/sprint", json={"prompt": "a"})
        assert refused.status_code == 503
        answers: list[httpx.Response] = [future.result(120) for future in accepted]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert server.process.wait(60) == 0
