"""BentoML's own application with its middlewares exchanged: what a client and the log see stays."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.http.stub import call

with warnings.catch_warnings():
    # What BentoML uses is deprecated by the libraries that it takes it from.
    warnings.simplefilter("ignore")
    from bentoml import api, service
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.log import TraceRecordFilter

    from sana_service.http.lean import Identified, Timeout, lean

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def app() -> Starlette:
    @service(metrics={"enabled": False}, traffic={"timeout": 60})
    class Echo:
        @api
        async def say(self, text: str) -> str:
            return text

    application = Echo.to_asgi()  # type: ignore[attr-defined]
    assert isinstance(application, Starlette)
    return application


@pytest.fixture
def exporter() -> Iterator[None]:
    BentoMLContainer.tracing.exporter_type.set("otlp")
    yield
    BentoMLContainer.tracing.exporter_type.set(None)


def classes(app: Starlette) -> list[Any]:
    return [middleware.cls for middleware in app.user_middleware]


def test_both_are_exchanged_and_nothing_else(app: Starlette) -> None:
    before = classes(app)
    after = classes(lean(app))
    changed = {old.__name__: new for old, new in zip(before, after, strict=True) if old is not new}
    assert changed == {"OpenTelemetryMiddleware": Identified, "TimeoutMiddleware": Timeout}


def test_spans_that_somebody_exports_are_made(app: Starlette, exporter: None) -> None:
    assert OpenTelemetryMiddleware in classes(lean(app))


@pytest.mark.parametrize("asked", [None, f"00-{TRACE}-00f067aa0ba902b7-01", "00-nonsense"])
@pytest.mark.parametrize("exchange", [False, True])
def test_the_answer_and_the_log_are_identified(
    app: Starlette, caplog: pytest.LogCaptureFixture, asked: str | None, exchange: bool
) -> None:
    lines = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            TraceRecordFilter().filter(record)
            lines.append(record.trace_msg)  # type: ignore[attr-defined]

    handler = Lines()
    access = logging.getLogger("bentoml.access")
    access.addHandler(handler)
    caplog.set_level(logging.INFO, "bentoml.access")
    try:
        with TestClient(lean(app) if exchange else app) as client:
            headers = {} if asked is None else {"traceparent": asked}
            answers = [client.post("/say", json={"text": "a"}, headers=headers) for _ in range(2)]
    finally:
        access.removeHandler(handler)
    assert [answer.text for answer in answers] == ["a", "a"]
    identifiers = [answer.headers["x-bentoml-request-id"] for answer in answers]
    assert len(set(identifiers)) == 2
    for line, identifier in zip(lines, identifiers, strict=True):
        trace, span, sampled = (part.partition("=")[2] for part in line.strip(" ()").split(",")[:3])
        assert len(trace) == 32
        assert (trace == TRACE) == (asked is not None and TRACE in asked)
        assert (span, sampled) == (identifier, "1" if trace == TRACE else "0")


async def late(_: Any, __: Any, send: Any) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        cancelled.append(True)
        raise


cancelled: list[bool] = []


def test_a_request_that_takes_too_long_is_504_and_its_work_stops() -> None:
    answer = call(Timeout(late, timeout=0.05), "POST", "/say")
    assert answer.status_code == 504
    assert answer.json() == {"error": "Not able to process the request in 0.05 seconds"}
    assert cancelled == [True]


def test_an_answer_that_has_begun_may_take_its_time() -> None:
    async def slow(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.1)
        await send({"type": "http.response.body", "body": b"whole"})

    assert call(Timeout(slow, timeout=0.05), "POST", "/say").text == "whole"


def test_a_timeout_of_the_work_itself_is_not_the_middlewares() -> None:
    async def fails(_: Any, __: Any, send: Any) -> None:
        raise TimeoutError("of something else")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Timeout(fails, timeout=60))
        async with httpx.AsyncClient(transport=transport, base_url="http://sana.test") as client:
            return await client.post("/say")

    with pytest.raises(TimeoutError, match="something else"):
        asyncio.run(ask())
