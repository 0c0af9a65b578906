"""Responses are counted by kinds of routes that no client can add to."""

from __future__ import annotations

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from sana_service import metrics
from sana_service.http.counting import ResponseCounter, route_kind


async def teapot(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("", status_code=418)(scope, receive, send)


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/", "generate"),
        ("GET", "/", "page"),
        ("POST", "/generate", "generate"),
        ("POST", "/sprint", "sprint"),
        ("GET", "/files/0f8c5a2b9d3e4f60718293a4b5c6d7e8.jpg", "files"),
        ("GET", "/assets/page.js", "page"),
        ("POST", "/v1/images/generations", "openai"),
        ("GET", "/queue/fal-ai/sana/requests/1/status", "fal"),
        ("POST", "/fal-ai/sana", "fal"),
        ("POST", "/fal-ai/sana/sprint", "fal"),
        ("POST", "/fal-ai/sanatorium", "other"),
        ("GET", "/generate/", "other"),
        ("GET", "/.env", "other"),
    ],
)
def test_a_path_is_of_a_kind(method: str, path: str, kind: str) -> None:
    assert route_kind(path, method) == kind


def test_a_thousand_paths_make_one_series() -> None:
    client = TestClient(ResponseCounter(teapot))

    def series() -> dict[tuple[str, str], float]:
        samples = [s for family in metrics.RESPONSES.collect() for s in family.samples]
        return {(s.labels["route"], s.labels["code"]): s.value for s in samples}

    before = series()
    for number in range(1000):
        client.get(f"/{number}")
    after = series()
    assert set(after) - set(before) <= {("other", "418")}
    assert after["other", "418"] - before.get(("other", "418"), 0.0) == 1000
