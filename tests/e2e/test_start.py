"""How a start ends when something is wrong, and what the service says meanwhile when nothing is."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import httpx
import pytest

from tests import services


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"SANA_MAX_PIXELS": "1000"}, "SANA_MAX_PIXELS='1000': must be greater than or equal to 8294400"),
        (
            {"SANA_API_KEYS_FILE": "/nonexistent"},
            "SANA_API_KEYS_FILE='/nonexistent': the file cannot be read",
        ),
        ({"SANA_STORAGE_URL": "nowhere://x"}, "SANA_STORAGE_URL='nowhere://x': "),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_line(tmp_path: Path, variables: dict[str, str], line: str) -> None:
    with services.process(tmp_path, variables) as server:
        assert server.process.wait(60) != 0
        complaints = [text for text in server.log.splitlines() if "SANA_" in text]
        assert len(complaints) == 1
        assert line in complaints[0]
        assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"SANA_MODELS": "hub", "SANA_BASE_MODEL": "/nonexistent/base"}, "/nonexistent/base"),
        ({"SANA_MODELS": "bundled", "SANA_SAFETY_MODEL": "/nonexistent/safety"}, "/nonexistent/safety"),
    ],
)
def test_a_failed_load_ends_the_process_with_one_line(tmp_path: Path, variables: dict[str, str], line: str) -> None:
    with services.process(tmp_path, variables) as server:
        assert server.process.wait(90) != 0
        complaints = [text for text in server.log.splitlines() if "start failed" in text]
        assert len(complaints) == 1
        assert line in complaints[0]
        assert "Traceback" not in server.log


def test_alive_before_ready(tmp_path: Path) -> None:
    with services.process(tmp_path, {"SANA_MODELS": "bundled"}) as server:
        deadline = time.monotonic() + services.START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{server.url}/livez", timeout=60).status_code == 200:
                    break
            assert server.process.poll() is None, server.log
            time.sleep(0.05)
        early = httpx.post(f"{server.url}/sprint", json={"prompt": "a"}, timeout=60)
        ready = httpx.get(f"{server.url}/readyz", timeout=60)
        # bad input is told so even now
        assert httpx.post(f"{server.url}/sprint", json={}, timeout=60).status_code == 422
        server.wait_until_ready()
    for answer in (early, ready):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert set(answer.json()) == {"detail"}
