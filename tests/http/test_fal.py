"""The queue's routes on a job service whose device never has time: what waits, what is refused, what ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from sana_service.http.boundary import ErrorBoundary
from sana_service.http.fal import Queue
from sana_service.http.routes import KnownRoutes, QueueHost
from sana_service.jobs.record import StoreError
from sana_service.jobs.service import JobService
from sana_service.jobs.sqlite import SqliteStore
from sana_service.settings import Settings
from tests.http.stub import client

PATH = "/queue/fal-ai/sana"
ASK = {"prompt": "a", "image_size": "square"}


class Bench:
    """The routes, and switches of the process behind them."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.open = True
        self.store = SqliteStore(folder / "jobs.db")
        chosen = Settings(max_jobs=2, **settings)
        self.jobs = JobService(chosen, self.store, self._never, lambda: False, lambda: self.open, lambda _: None)
        self.app: ASGIApp = QueueHost(ErrorBoundary(KnownRoutes(Queue(chosen, lambda: self.jobs))))

    @staticmethod
    async def _never(*_: Any) -> Any:
        raise AssertionError("nothing is drawn here")

    def run(self, visit: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
        async def main() -> None:
            async with client(self.app) as http:
                await visit(http)

        asyncio.run(main())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def test_what_waits_is_bounded_by_the_operator_and_by_the_client(bench):
    async def visit(http):
        first = await http.post(PATH, json=ASK)
        assert first.json()["queue_position"] == 0
        refused = await http.post(f"{PATH}?fal_max_queue_length=1", json=ASK)
        assert (refused.status_code, refused.json()["error_type"]) == (429, "concurrent_requests_limit")
        assert refused.headers["retry-after"].isdecimal()
        assert (await http.post(PATH, json=ASK)).json()["queue_position"] == 1
        assert (await http.post(PATH, json=ASK)).status_code == 429
        for length in ("0", "many", "-1", ""):
            assert (await http.post(f"{PATH}?fal_max_queue_length={length}", json=ASK)).status_code == 400

    bench.run(visit)


def test_a_result_before_the_end_is_400_and_cancelling_ends_what_waits(bench):
    async def visit(http):
        links = (await http.post(PATH, json=ASK)).json()
        early = await http.get(links["response_url"])
        assert (early.status_code, early.json()["detail"]) == (400, "Request is still in progress")
        waiting = await http.get(links["status_url"])
        assert (waiting.status_code, waiting.json()["status"], waiting.json()["queue_position"]) == (202, "IN_QUEUE", 0)
        cancelled = await http.put(links["cancel_url"])
        assert (cancelled.status_code, cancelled.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
        again = await http.put(links["cancel_url"])
        assert (again.status_code, again.json()) == (400, {"status": "ALREADY_COMPLETED"})
        unknown = await http.put(f"{PATH}/requests/{'0' * 32}/cancel")
        assert (unknown.status_code, unknown.json()) == (404, {"status": "NOT_FOUND"})
        done = (await http.get(links["status_url"])).json()
        assert (done["status"], done["error_type"], done["logs"], done["metrics"]) == (
            "COMPLETED", "client_cancelled", [], {},
        )  # fmt: skip
        ended = await http.get(links["response_url"])
        assert (ended.status_code, ended.json()["error_type"]) == (499, "client_cancelled")

    bench.run(visit)


def test_a_faulty_request_is_its_own_result(bench):
    async def visit(http):
        links = (await http.post(PATH, json={**ASK, "seed": -1})).json()
        assert (await http.get(links["status_url"])).status_code == 200
        ended = await http.get(links["response_url"])
        assert (ended.status_code, ended.json()["detail"][0]["loc"]) == (422, ["body", "seed"])

    bench.run(visit)


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [(b"", "application/json", 400), (b"[]", "application/json", 400), (b"{}", "text/plain", 415)],
)
def test_a_body_that_is_no_request_is_refused_at_once(bench, content, media_type, status):
    async def visit(http):
        answer = await http.post(PATH, content=content, headers={"content-type": media_type})
        assert (answer.status_code, answer.json()["error_type"]) == (status, "bad_request")
        assert answer.headers["x-fal-error-type"] == "bad_request"

    bench.run(visit)


def test_links_lead_back_the_way_the_client_came(tmp_path):
    behind = Bench(tmp_path / "behind", public_url="https://images.example/sana")
    plain = Bench(tmp_path / "plain")

    async def visit(http):
        body = (await http.post("/fal-ai/sana", json=ASK, headers={"host": "queue.example:8443"})).json()
        assert body["status_url"].startswith("http://queue.example:8443/fal-ai/sana/requests/")

    async def visit_behind(http):
        body = (await http.post(PATH, json=ASK)).json()
        assert body["response_url"].startswith("https://images.example/sana/queue/fal-ai/sana/requests/")
        body = (await http.post("/fal-ai/sana", json=ASK, headers={"host": "queue.example"})).json()
        assert body["response_url"].startswith("https://queue.example/fal-ai/sana/requests/")

    plain.run(visit)
    behind.run(visit_behind)
    plain.store.close()
    behind.store.close()


def test_a_process_that_drains_takes_no_jobs_and_ends_its_streams(bench):
    async def visit(http):
        links = (await http.post(PATH, json=ASK)).json()
        bench.open = False
        refused = await http.post(PATH, json=ASK)
        assert (refused.status_code, refused.json()["error_type"]) == (503, "runner_scheduling_failure")
        streamed = await http.get(f"{links['status_url']}/stream")
        [event] = [line for line in streamed.text.splitlines() if line.startswith("data: ")]
        assert json.loads(event.removeprefix("data: "))["status"] == "IN_QUEUE"
        assert streamed.headers["content-type"].startswith("text/event-stream")

    bench.run(visit)


def test_a_store_that_fails_is_503(bench, monkeypatch):
    def failing(*_: object) -> None:
        raise StoreError("/secret/path: disk full")

    monkeypatch.setattr(bench.store, "add", failing)
    monkeypatch.setattr(bench.store, "get", failing)

    async def visit(http):
        for answer in (await http.post(PATH, json=ASK), await http.get(f"{PATH}/requests/{'0' * 32}/status/stream")):
            assert answer.status_code == 503
            assert "secret" not in answer.text
            assert "retry-after" in answer.headers

    bench.run(visit)
