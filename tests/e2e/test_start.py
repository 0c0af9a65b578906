"""How a start ends when something is wrong, and what the service says meanwhile when nothing is."""

from __future__ import annotations

import contextlib
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


FAILED_LOADS = {
    "/nonexistent/base": {"SANA_MODELS": "hub", "SANA_BASE_MODEL": "/nonexistent/base"},
    "/nonexistent/safety": {"SANA_MODELS": "bundled", "SANA_SAFETY_MODEL": "/nonexistent/safety"},
}


def test_a_failed_load_ends_the_process_with_one_line(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = {
            cause: stack.enter_context(services.process(tmp_path / str(index), variables))
            for index, (cause, variables) in enumerate(FAILED_LOADS.items())
        }
        for cause, server in servers.items():
            assert server.process.wait(120) != 0
            complaints = [text for text in server.log.splitlines() if "start failed" in text]
            assert len(complaints) == 1
            assert cause in complaints[0]
            assert "Traceback" not in server.log


def test_alive_before_ready(bundled_start: tuple[services.Server, dict[str, httpx.Response]]) -> None:
    _, early = bundled_start
    assert early["/livez"].status_code == 200
    for answer in (early["/readyz"], early["/sprint"]):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert set(answer.json()) == {"detail"}
    # bad input is told so even then
    assert early["bad input"].status_code == 422
