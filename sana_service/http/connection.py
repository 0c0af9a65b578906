"""One client's connection: uvicorn's HTTP protocol with limits of time, and errors in the contract's shape.

uvicorn waits for ever for the rest of a request and for a client that does not read, so a few thousand idle sockets
would take every file handle. Here

* a request must be whole `request_seconds` after its first byte, the first one after the connection opened, or it is
  answered 408;
* a client must take `stall_bytes` of its answer in each `stall_seconds`, or the connection is cut;
* a connection without a request stays open for `idle_seconds`, unless the server was told another time: uvicorn's own
  five seconds are less than what balancers keep theirs for, and one that sends as the other side closes answers 502;
* at the end of the process a connection that takes nothing more for `closing_seconds` is cut.

What is no HTTP is 400, headers that never end are 431, and an upgrade to another protocol is ignored: there is no
WebSocket route, and none that the API keys do not see. Nothing here knows routes.
"""

from __future__ import annotations

import asyncio
import fcntl
import inspect
import json
import struct
import termios
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from sana_service.contract.billing import BILLING_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_HEADER_BYTES = 16 * 1024

_UVICORNS_IDLE_SECONDS: int = inspect.signature(Config).parameters["timeout_keep_alive"].default


class Connection(H11Protocol):
    """As uvicorn calls it. The limits are attributes, so that a test can have shorter ones."""

    request_seconds = 30.0
    idle_seconds = 75.0
    stall_seconds = 20.0
    stall_bytes = 160 * 1024
    closing_seconds = 10.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        if self.timeout_keep_alive == _UVICORNS_IDLE_SECONDS:
            self.timeout_keep_alive = self.idle_seconds  # type: ignore[assignment]  # a timer's seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; it owes a request."""
        super().connection_made(transport)
        self._start("request", self.request_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        for name in tuple(self._timers):
            self._stop(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A part of a request; the clock runs from its first byte to its last."""
        super().data_received(data)
        if self.conn.their_state not in {h11.IDLE, h11.SEND_BODY}:
            self._stop("request")
        elif "request" not in self._timers and not self.transport.is_closing():
            self._start("request", self.request_seconds, self._too_slow)

    def pause_writing(self) -> None:
        """More is written than the client has taken."""
        super().pause_writing()
        self._watch_reader()

    def on_response_complete(self) -> None:
        """All is written, which does not mean that the client has it."""
        super().on_response_complete()
        self._watch_reader()

    def shutdown(self) -> None:
        """The process ends."""
        super().shutdown()
        self._watch_closing()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, or its headers have no end."""
        endless = len(self.conn.trailing_data[0]) > MAX_HEADER_BYTES
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if endless else HTTPStatus.BAD_REQUEST
        self._refuse(status, f"The headers must be at most {MAX_HEADER_BYTES} bytes." if endless else msg)

    def _should_upgrade(self) -> bool:
        return False

    def _too_slow(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"The request was not whole after {self.request_seconds:g} seconds.")

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer where nothing is answered yet, and close."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE} and not self.transport.is_closing():
            body = json.dumps({"detail": detail}).encode()
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                "x-request-id": uuid.uuid4().hex,
                "server-timing": "total;dur=0.0",
                BILLING_HEADER: "0",
            }
            answer = h11.Response(status_code=int(status), headers=list(headers.items()), reason=status.phrase)
            # The answer to HEAD has no body, and h11 holds to that.
            head = self.conn.our_state is not h11.IDLE and self.scope["method"] == "HEAD"
            for event in (answer, *(() if head else (h11.Data(data=body),)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn says that there always is one
        if cycle is not None and not cycle.response_complete:
            # The application is told that the client has left, and what it says is not sent.
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()
        self._watch_reader()

    def _watch_reader(self) -> None:
        if self.transport.get_write_buffer_size() and "reader" not in self._timers:
            left = self._not_taken_bytes()
            self._start("reader", self.stall_seconds, lambda: self._check_reader(left))

    def _check_reader(self, before: int) -> None:
        left = self._not_taken_bytes()
        if self.transport.get_write_buffer_size() and left <= before < left + self.stall_bytes:
            self.transport.abort()
        else:
            self._watch_reader()

    def _watch_closing(self) -> None:
        left = self._not_taken_bytes()
        self._start("closing", self.closing_seconds, lambda: self._check_closing(left))

    def _check_closing(self, before: int) -> None:
        if self._not_taken_bytes() < before:
            self._watch_closing()
        else:
            self.transport.abort()

    def _not_taken_bytes(self) -> int:
        """What the client has not acknowledged: here, and in the kernel, which holds megabytes of it."""
        buffered = self.transport.get_write_buffer_size()
        try:
            handle = self.transport.get_extra_info("socket").fileno()
            return buffered + int(struct.unpack("i", fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)))[0])
        except OSError:  # closed, or no TCP
            return buffered

    def _start(self, name: str, seconds: float, action: Callable[[], object]) -> None:
        def ring() -> None:
            del self._timers[name]
            action()

        self._stop(name)
        self._timers[name] = self.loop.call_later(seconds, ring)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
