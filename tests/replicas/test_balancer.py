"""HAProxy's configuration in front of stubs: who gets a request, and how often one is sent."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import services
from tests.replicas.farm import REPLICAS, balancer

KEYED = {"Idempotency-Key": "one"}
# The balancer asks every second; after a change three times a second.
PATIENCE_SECONDS = 20.0


class Stub(ThreadingHTTPServer):
    """A replica that draws nothing: `/readyz` and the answer to a POST are what a test sets."""

    daemon_threads = True

    def __init__(self, number: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.number = number
        self.ready = True
        self.status = 200
        self.drawing = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()
        self.drawn: list[str] = []
        self.checks = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The balancer is ended while it asks; that is no fault."""

    def wait_until_seen(self) -> None:
        """Until the balancer has seen the state of now: the third question comes after the answer to the second."""
        seen = self.checks
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.checks < seen + 3:
            assert time.monotonic() < deadline, "the balancer does not ask"
            time.sleep(0.02)


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self._answer(200 if self.server.ready or self.path != "/readyz" else 503)
        # The balancer alone asks without a Host.
        self.server.checks += "Host" not in self.headers

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.drawn.append(self.path)
        self.server.drawing.set()
        self.server.may_end.wait(PATIENCE_SECONDS)
        self._answer(self.server.status)

    def _answer(self, status: int) -> None:
        body = json.dumps({"replica": self.server.number}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(Stub(number)) for number in range(1, REPLICAS + 1)]
        for stub in made:
            threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            stack.callback(stub.shutdown)
        yield made


@pytest.fixture
def http(tmp_path: Path, stubs: list[Stub]) -> Iterator[httpx.Client]:
    if shutil.which("haproxy") is None:
        pytest.skip("not installed (apt-get install haproxy)")
    port = services.free_port()
    with (
        balancer(tmp_path / "haproxy.log", port, [stub.server_port for stub in stubs]),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        yield client


def ask(http: httpx.Client, path: str = "/generate", headers: dict[str, str] | None = None) -> httpx.Response:
    return http.post(path, json={"prompt": "a"}, headers=headers)


def drawn(stubs: list[Stub]) -> int:
    return sum(len(stub.drawn) for stub in stubs)


def test_replicas_that_are_not_ready_get_nothing(http: httpx.Client, stubs: list[Stub]) -> None:
    """Two that turn everything away at once always have the fewest requests."""
    loading, draining, ready = stubs
    for stub in (loading, draining):
        stub.ready, stub.status = False, 503
    for stub in (loading, draining):
        stub.wait_until_seen()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: ask(http, headers=KEYED if number % 2 else None), range(24)))
    assert Counter((answer.status_code, answer.json()["replica"]) for answer in answers) == {(200, ready.number): 24}
    loading.ready, loading.status = True, 200
    loading.wait_until_seen()
    with ThreadPoolExecutor(8) as pool:
        again = {answer.json()["replica"] for answer in pool.map(lambda _: ask(http), range(24))}
    assert again == {loading.number, ready.number}
    assert draining.drawn == []


def test_what_a_replica_has_when_it_begins_to_drain_is_answered(http: httpx.Client, stubs: list[Stub]) -> None:
    draining, *others = stubs
    for stub in others:
        stub.ready = False
    for stub in others:
        stub.wait_until_seen()
    draining.may_end.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, http)
        assert draining.drawing.wait(PATIENCE_SECONDS)
        draining.ready = False
        draining.wait_until_seen()
        draining.may_end.set()
        assert answer.result().json() == {"replica": draining.number}


def test_without_a_ready_replica_the_balancer_answers_in_the_services_shape(
    http: httpx.Client, stubs: list[Stub]
) -> None:
    for stub in stubs:
        stub.ready = False
    for stub in stubs:
        stub.wait_until_seen()
    for headers in (None, KEYED):
        answer = ask(http, headers=headers)
        assert answer.status_code == 503
        assert answer.json() == {"detail": "No replica is ready, retry later."}
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-fal-billable-units"] == "0"
        assert int(answer.headers["retry-after"]) > 0
    assert drawn(stubs) == 0


@pytest.mark.parametrize(
    ("path", "headers", "times"),
    [
        ("/generate", {}, 1),
        ("/generate", KEYED, 2),
        ("/", KEYED, 2),
        ("/sprint", KEYED, 2),
        ("/fal-ai/sana", KEYED, 2),
        ("/fal-ai/sana/sprint", KEYED, 2),
        ("/fal-ai/sana", {**KEYED, "Host": "queue.example.com"}, 1),
        ("/queue/fal-ai/sana", KEYED, 1),
        ("/v1/images/generations", KEYED, 1),
    ],
)
def test_a_503_is_repeated_once_and_only_where_a_key_counts(
    http: httpx.Client, stubs: list[Stub], path: str, headers: dict[str, str], times: int
) -> None:
    """It may come after the drawing, as when the storage does not answer."""
    for stub in stubs:
        stub.status = 503
    assert ask(http, path, headers).status_code == 503
    assert drawn(stubs) == times


@pytest.mark.parametrize("headers", [{}, KEYED])
def test_a_refused_connection_costs_the_client_nothing(
    http: httpx.Client, stubs: list[Stub], headers: dict[str, str]
) -> None:
    gone, *_ = stubs
    gone.shutdown()
    gone.server_close()
    assert [ask(http, headers=headers).status_code for _ in range(6)] == [200] * 6
    assert drawn(stubs) == 6
