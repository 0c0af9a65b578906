"""A service whose devices have a process each: what an operator sees when one of them dies, and when all have."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from tests import services

COMMAND = ("bentoml", "serve", "tests.e2e.several_devices:Sana")
BODY = {"prompt": "a", "image_size": "square"}


def devices(server: services.Server) -> list[psutil.Process]:
    """The processes of the devices, in the order of their names."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    children = [one for one in family if "sana_service.engine.processes.child" in one.cmdline()]
    return sorted(children, key=lambda child: child.pid)


def metric(text: str, name: str) -> float:
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_a_device_dies_under_load_and_no_request_is_lost(tmp_path: Path) -> None:
    with (
        services.server(tmp_path, {}, command=COMMAND) as server,
        server.client() as http,
        ThreadPoolExecutor(24) as pool,
    ):
        assert len(devices(server)) == 2
        answers = [pool.submit(http.post, "/sprint", json=BODY | {"seed": seed}) for seed in range(60)]
        answers[5].result(60)
        devices(server)[0].kill()
        assert [answer.result(60).status_code for answer in answers] == [200] * 60
        assert http.get("/livez").status_code == http.get("/readyz").status_code == 200
        assert metric(http.get("/metrics").text, "sana_devices_lost") == 1
        assert server.log.count("is lost until the service restarts: its process ended, signal 9") == 1

        devices(server)[0].kill()
        assert server.first_answer("/livez", 503).json() == {"detail": "Service Unavailable"}
        assert http.post("/sprint", json=BODY).status_code == 503


def test_a_drain_ends_the_devices_too(tmp_path: Path) -> None:
    with services.server(tmp_path, {}, command=COMMAND) as server, server.client() as http:
        with ThreadPoolExecutor(2) as pool:
            accepted = [pool.submit(http.post, "/generate", json=BODY) for _ in range(2)]
            give_up_at = time.monotonic() + 30
            while metric(http.get("/metrics").text, "sana_running_jobs") < 2:
                assert time.monotonic() < give_up_at
            left = devices(server)
            for process in left:
                process.send_signal(signal.SIGTERM)  # as a terminal's Ctrl-C reaches them; not theirs to obey
            server.process.send_signal(signal.SIGTERM)
            assert [answer.result(60).status_code for answer in accepted] == [200, 200]
        assert server.process.wait(60) == 0
        psutil.wait_procs(left, 30)
        assert not any(process.is_running() for process in left)
