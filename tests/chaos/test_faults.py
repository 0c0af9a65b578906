"""A real server meets each fault: what the client is told, and that the service goes on."""

from __future__ import annotations

import io
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.chaos.accounts import read_accounts, settled
from tests.chaos.conftest import Faulty, faulty_server

QUICK = {"image_size": "square", "num_inference_steps": 2}
SECONDS = 20.0


def draw(http: httpx.Client, prompt: str, route: str = "/generate", **fields: Any) -> httpx.Response:
    return http.post(route, json={**QUICK, "prompt": prompt, **fields})


def is_picture(http: httpx.Client, answer: httpx.Response) -> bool:
    """Whether an answer has a picture with something on it."""
    if answer.status_code != 200:
        return False
    url = answer.json()["images"][0]["url"]
    return bool(np.asarray(Image.open(io.BytesIO(http.get(url).content))).std() > 5)


def shortages(http: httpx.Client, stage: str) -> float:
    """What `/metrics` says of a stage."""
    line = next(
        line
        for line in http.get("/metrics").text.splitlines()
        if line.startswith(f'sana_out_of_memory_total{{stage="{stage}"}}')
    )
    return float(line.split()[-1])


@pytest.mark.parametrize("stage", ["text", "denoise", "decode"])
def test_a_device_out_of_memory_is_503_for_its_request_alone(faulty: Faulty, stage: str) -> None:
    with faulty.client() as http:
        before, counted = faulty.files(), shortages(http, stage)
        answer = draw(http, f"fault:oom-{stage}")
        assert answer.status_code == 503
        assert "too little memory" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-fal-billable-units"] == "0"
        assert faulty.files() == before
        assert shortages(http, stage) > counted
        assert is_picture(http, draw(http, "a circle"))


@pytest.mark.parametrize("stage", ["text", "denoise", "decode"])
def test_a_short_lack_of_memory_changes_no_picture(faulty: Faulty, stage: str) -> None:
    with faulty.client() as http:
        answers = [draw(http, f"fault:short-{stage}", seed=1) for _ in range(2)]
        pictures = [http.get(answer.json()["images"][0]["url"]).content for answer in answers]
        assert is_picture(http, answers[0])
        assert pictures[0] == pictures[1]


@pytest.mark.parametrize("stage", ["text", "denoise", "decode"])
def test_an_error_of_a_kernel_is_500_for_its_request_alone(faulty: Faulty, stage: str) -> None:
    with faulty.client() as http:
        answer = draw(http, f"fault:kernel-{stage}", "/sprint")
        assert (answer.status_code, answer.json()) == (500, {"detail": "Internal Server Error"})
        assert http.get("/livez").status_code == 200
        assert is_picture(http, draw(http, "a circle", "/sprint"))


def test_latents_that_are_no_numbers_are_an_error_and_no_black_picture(faulty: Faulty) -> None:
    with faulty.client() as http:
        before = faulty.files()
        answer = draw(http, "fault:nan")
        assert (answer.status_code, answer.json()) == (500, {"detail": "Internal Server Error"})
        assert answer.headers["x-fal-billable-units"] == "0"
        assert faulty.files() == before


def test_a_full_disk_is_503_and_leaves_nothing_behind(faulty: Faulty) -> None:
    with faulty.client() as http:
        before = faulty.files()
        faulty.on("disk-full")
        try:
            answer = draw(http, "a circle", num_images=3)
            inline = draw(http, "a circle", sync_mode=True)
        finally:
            faulty.off("disk-full")
        assert answer.status_code == 503
        assert "storage" in answer.json()["detail"]
        assert str(faulty.server.storage) not in answer.text
        assert int(answer.headers["retry-after"]) >= 1
        assert faulty.files() == before
        # what needs no disk is served
        assert inline.status_code == 200
        assert is_picture(http, draw(http, "a circle"))


@pytest.mark.parametrize("jump_seconds", [86_400.0, -86_400.0])
def test_a_clock_that_jumps_ends_no_request(faulty: Faulty, jump_seconds: float) -> None:
    with faulty.client() as http:
        before = read_accounts(http)
        queued = http.post("/queue/fal-ai/sana", json={**QUICK, "prompt": "fault:wait-denoise"}).json()
        wait_for(faulty, "at-denoise")
        faulty.on("clock", str(jump_seconds))
        try:
            # two looks at the leases, which are renewed every second
            seen = time.monotonic() + 2.5
            while time.monotonic() < seen:
                assert http.get("/readyz").status_code == 200
            faulty.on("go-denoise")
            status = http.get(queued["status_url"]).json()["status"]
            deadline = time.monotonic() + SECONDS
            while status != "COMPLETED":
                assert time.monotonic() < deadline
                status = http.get(queued["status_url"]).json()["status"]
            ended = http.get(queued["response_url"])
            assert ended.status_code == 200
            assert len(ended.json()["images"]) == 1
        finally:
            for switch in ("clock", "at-denoise", "go-denoise"):
                faulty.off(switch)
        after = settled(http, lambda counts: counts["in flight"] == 0)
        # drawn once, and not again by a worker that finds its own lease lapsed
        assert after["completed"] - before["completed"] == 1
        assert after["failed"] == before["failed"]


def wait_for(faulty: Faulty, switch: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not faulty.is_on(switch):
        assert time.monotonic() < deadline, faulty.server.log[-3000:]
        time.sleep(0.01)


@pytest.mark.parametrize("stage", ["text", "denoise", "decode", "encode", "store"])
def test_a_client_that_leaves_in_any_stage_is_missed_and_leaves_nothing(faulty: Faulty, stage: str) -> None:
    with faulty.client() as http:
        files, before = faulty.files(), read_accounts(http)
        body = httpx.Request("POST", "http://a", json={**QUICK, "prompt": f"fault:wait-{stage}"}).content
        address = faulty.server.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as client:
            head = f"POST /sprint HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            client.sendall(head.encode() + b"\r\n\r\n" + body)
            wait_for(faulty, f"at-{stage}")
        try:
            # noticed while the stage still works
            gone = settled(http, lambda counts: counts["cancelled"] > before["cancelled"]) if stage != "store" else None
            assert http.get("/readyz").status_code == 200
        finally:
            faulty.on(f"go-{stage}")
        after = settled(http, lambda counts: counts["cancelled"] > before["cancelled"] and counts["in flight"] == 0)
        faulty.off(f"at-{stage}")
        faulty.off(f"go-{stage}")
        assert gone is None or gone["cancelled"] == before["cancelled"] + 1
        assert after["cancelled"] == before["cancelled"] + 1
        assert (after["in flight"], after["units"]) == (0, before["units"])
        assert faulty.files() == files
        assert is_picture(http, draw(http, "a circle", "/sprint"))


def test_a_device_that_is_lost_for_good_makes_the_process_ask_for_its_end(
    tmp_path: Path, pair_variables: dict[str, str]
) -> None:
    with faulty_server(tmp_path, pair_variables) as faulty, faulty.client() as http:
        assert http.get("/livez").status_code == http.get("/readyz").status_code == 200
        faulty.on("device-lost")
        answer = draw(http, "a circle")
        assert answer.status_code in {500, 503}
        assert "illegal memory access" not in answer.text
        lost = http.get("/livez")
        assert (lost.status_code, set(lost.json())) == (503, {"detail"})
        assert http.get("/readyz").status_code == 503
        refused = draw(http, "a circle")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "is lost until the process restarts" in faulty.server.log
