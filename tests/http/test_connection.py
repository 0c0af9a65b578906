"""Clients at the wire: slow, silent, talking nonsense. A real uvicorn, raw sockets, short limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from sana_service.http.connection import Connection

SECONDS = 20.0
BIG = 24 * 1024 * 1024


class Hasty(Connection):
    request_seconds = 0.4
    idle_seconds = 0.6
    stall_seconds = 0.2
    closing_seconds = 0.3


class Patient(Connection):
    """Any progress at all is enough."""

    stall_seconds = 0.3
    stall_bytes = 1


class App:
    """Reads the body and answers as the path says; keeps what it saw."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.left = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.set()
                return
            more = message.get("more_body", False)
        if scope["path"] == "/long":
            await asyncio.sleep(2 * Hasty.request_seconds)
        body = b"x" * (BIG if scope["path"] == "/big" else 2)
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})


class Served:
    """A uvicorn in a thread."""

    def __init__(self, protocol: type[Connection], **options: Any) -> None:
        self.app = App()
        config = uvicorn.Config(self.app, http=protocol, port=0, lifespan="off", log_config=None, **options)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        self.address: tuple[str, int] = self.server.servers[0].sockets[0].getsockname()

    @contextmanager
    def socket(self, receive_bytes: int | None = None) -> Iterator[socket.socket]:
        with socket.socket() as client:
            if receive_bytes is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            client.settimeout(SECONDS)
            client.connect(self.address)
            yield client

    def wait_for_connections(self, number: int) -> None:
        deadline = time.monotonic() + SECONDS
        while len(self.server.server_state.connections) != number:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> float:
        started = time.monotonic()
        self.server.should_exit = True
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        return time.monotonic() - started


@contextmanager
def served(protocol: type[Connection], **options: Any) -> Iterator[Served]:
    one = Served(protocol, **options)
    try:
        yield one
    finally:
        one.stop()


@pytest.fixture(scope="module")
def hasty() -> Iterator[Served]:
    with served(Hasty) as one:
        yield one


def answer_of(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body up to the end of the connection."""
    received = b""
    # One that goes on sending to a closed connection is reset, after it has got the answer.
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(2**20):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


def trickle(client: socket.socket, data: bytes) -> None:
    """A byte at a time, each well within any limit, until the other side has had enough."""
    for byte in data:
        try:
            client.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(0.02)


@pytest.mark.parametrize(
    "start", [b"", b"POST / HTTP/1.1\r\nHost: a\r\nX: ", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n"]
)
def test_a_request_that_does_not_become_whole_is_408_however_busily_it_comes(hasty: Served, start: bytes) -> None:
    with hasty.socket() as client:
        client.sendall(start)
        started = time.monotonic()
        if start:
            sender = threading.Thread(target=trickle, args=(client, b"x" * 200))
            sender.start()
        status, headers, body = answer_of(client)
        assert status == 408
        assert headers["content-type"] == "application/json"
        assert headers["x-fal-billable-units"] == "0"
        assert len(headers["x-request-id"]) == 32
        assert list(json.loads(body)) == ["detail"]
        assert time.monotonic() - started >= 0.9 * Hasty.request_seconds
    if start:
        sender.join(SECONDS)
    hasty.wait_for_connections(0)


def test_the_application_is_told_that_a_slow_sender_is_gone(hasty: Served) -> None:
    hasty.app.left.clear()
    with hasty.socket() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\nx")
        assert hasty.app.left.wait(SECONDS)


def test_a_whole_request_may_take_its_time(hasty: Served) -> None:
    with hasty.socket() as client:
        for _ in range(2):
            client.sendall(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
            received = b""
            while not received.endswith(b"\r\n\r\nxx"):
                received += client.recv(1000)
            assert received.startswith(b"HTTP/1.1 200")


def idle_seconds_of(server: Served) -> float:
    """How long a connection is left open after an answer."""
    with server.socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        received = b""
        while not received.endswith(b"\r\n\r\nxx"):
            received += client.recv(1000)
        answered = time.monotonic()
        assert client.recv(1000) == b""
        return time.monotonic() - answered


def test_an_idle_connection_stays_open_for_longer_than_a_balancer_keeps_it() -> None:
    aws_load_balancer_seconds = ingress_nginx_seconds = 60
    assert Connection.idle_seconds > max(aws_load_balancer_seconds, ingress_nginx_seconds)
    with served(Hasty) as server:
        assert idle_seconds_of(server) == pytest.approx(Hasty.idle_seconds, abs=0.5)


def test_the_operator_may_say_how_long_an_idle_connection_stays_open() -> None:
    with served(Connection, timeout_keep_alive=1) as server:
        assert idle_seconds_of(server) == pytest.approx(1, abs=0.5)


def test_a_client_that_does_not_read_is_cut_off(hasty: Served) -> None:
    with hasty.socket(receive_bytes=4096) as client:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        hasty.wait_for_connections(1)
        hasty.wait_for_connections(0)
        status, headers, body = answer_of(client)
        assert (status, headers["content-length"]) == (200, str(BIG))
        assert len(body) < BIG


def test_a_client_that_reads_slowly_gets_all() -> None:
    with served(Patient) as patient, patient.socket(receive_bytes=4096) as client:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received, started = 0, time.monotonic()
        while chunk := client.recv(2**18):
            received += len(chunk)
            if time.monotonic() - started < 4 * Patient.stall_seconds:
                time.sleep(0.01)
        assert received > BIG
        assert time.monotonic() - started > 2 * Patient.stall_seconds


def test_the_end_of_the_process_waits_for_a_client_that_reads() -> None:
    class Lenient(Patient):
        closing_seconds = 0.3

    lenient = Served(Lenient)
    with lenient.socket(receive_bytes=4096) as client, ThreadPoolExecutor(1) as pool:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = len(client.recv(2**18))
        stopping = pool.submit(lenient.stop)
        started = time.monotonic()
        while chunk := client.recv(2**18):
            received += len(chunk)
            if time.monotonic() - started < 4 * Lenient.closing_seconds:
                time.sleep(0.01)
        assert received > BIG
        stopping.result(SECONDS)


def test_the_end_of_the_process_does_not_wait_for_a_client_that_does_not_read() -> None:
    class Lenient(Hasty):
        stall_seconds = 3600.0

    lenient = Served(Lenient)
    with lenient.socket(receive_bytes=4096) as client:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(100)
        assert lenient.stop() < SECONDS / 2


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000, 431),
    ],
)
def test_what_is_no_request_is_refused_in_the_contract_s_shape(hasty: Served, sent: bytes, status: int) -> None:
    with hasty.socket() as client:
        client.sendall(sent)
        answered, headers, body = answer_of(client)
    assert answered == status
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)
    assert list(json.loads(body)) == ["detail"]


def test_a_malformed_head_is_refused_without_a_body(hasty: Served) -> None:
    with hasty.socket() as client:
        client.sendall(b"HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n")
        answer = b""
        while part := client.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"\r\n\r\n")


def test_an_upgrade_is_an_ordinary_request(hasty: Served) -> None:
    """Or it would reach routes past the API keys."""
    upgrade: dict[str, Any] = {"Upgrade": "websocket", "Connection": "Upgrade, close", "Sec-WebSocket-Version": "13"}
    with hasty.socket() as client:
        lines = "".join(f"{name}: {value}\r\n" for name, value in upgrade.items())
        client.sendall(f"GET /ws HTTP/1.1\r\nHost: a\r\n{lines}Sec-WebSocket-Key: YQ==\r\n\r\n".encode())
        client.settimeout(5)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert [scope["type"] for scope in hasty.app.scopes if scope["path"] == "/ws"] == ["http"]
