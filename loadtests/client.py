"""Sends one planned request and says what became of it. The HTTP client is that of Locust's `FastHttpUser`.

A POST is sent once: nothing is retried, so that no latency hides a second attempt.
"""

from __future__ import annotations

import errno
import json
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import gevent
from geventhttpclient.client import HTTPClient
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError, HTTPSocketPoolResponse

from loadtests.contract import BILLING_HEADER, REFUSALS, answer_faults
from loadtests.records import CANCELLED, Record
from loadtests.schedule import Planned
from loadtests.timing import server_timing

REFUSED_CONNECTION = "connection refused"
CLOSED_CONNECTION = "connection closed"
CONNECTION_FAULTS = (REFUSED_CONNECTION, CLOSED_CONNECTION, "connection reset", "host unreachable")

_FAULTS: dict[type[Exception], str] = {
    HTTPConnectionClosed: CLOSED_CONNECTION,
    HTTPParseError: "answer is no whole HTTP",
    ConnectionRefusedError: REFUSED_CONNECTION,
    ConnectionResetError: "connection reset",
    BrokenPipeError: "connection reset",
    TimeoutError: "timeout",
}
_CONNECTIONS = 4096
_CONNECT_SECONDS = 5.0
_BLOCK_BYTES = 65536


class Client:
    """Asks one server; one for each process.

    Args:
        host: scheme, host and port.
        api_key: sent as `Authorization: Key ...`, empty for none.
        timeout_seconds: after which an answer is given up.
    """

    def __init__(self, host: str, api_key: str, timeout_seconds: float) -> None:
        self._path = urlsplit(host).path.rstrip("/")
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Key {api_key}"
        self._timeout_seconds = timeout_seconds
        self._http = HTTPClient.from_url(
            host,
            concurrency=_CONNECTIONS,
            connection_timeout=_CONNECT_SECONDS,
            network_timeout=timeout_seconds,
            block_size=_BLOCK_BYTES,
        )

    def ask(self, planned: Planned, clock: float, due: float | None = None) -> Record:
        """Send it now and wait for the answer.

        Args:
            planned: the request.
            clock: `time.perf_counter()` at the start of the run.
            due: when it should have been sent, seconds from then; None for now.
        """
        body = json.dumps(planned.body).encode()
        sent = time.perf_counter() - clock
        seconds, error = self._timeout_seconds, "timeout"
        if planned.cancel_after_seconds is not None and planned.cancel_after_seconds < seconds:
            seconds, error = planned.cancel_after_seconds, CANCELLED
        response, content, fault, came = None, b"", None, None
        limit = gevent.Timeout.start_new(seconds)
        try:
            response = self._http.request("POST", f"{self._path}/{planned.endpoint}", body, self._headers)
            came = time.perf_counter() - clock
            content = _read(response, planned.read_bytes_per_second)
        except gevent.Timeout as timeout:
            if timeout is not limit:
                raise
            fault = error
        except (HTTPParseError, OSError) as problem:
            fault = _fault(problem)
        finally:
            limit.close()
            if response is not None:
                response.release()
        done = time.perf_counter() - clock
        if planned.read_bytes_per_second is not None and came is not None:
            # What a slow reader takes to read is not the server's latency.
            done = came
        # The next answer may be here: what this one says can wait until nothing else does.
        gevent.idle()
        return _record(planned, sent if due is None else due, sent, done, response, content, fault)

    def close(self) -> None:
        self._http.close()


def _read(response: HTTPSocketPoolResponse, bytes_per_second: int | None) -> bytes:
    """The body; slowly, in blocks of a tenth of a second, where a rate is given."""
    if bytes_per_second is None:
        return bytes(response.read())
    block = max(1, bytes_per_second // 10)
    content = b""
    while part := response.read(block):
        content += part
        gevent.sleep(len(part) / bytes_per_second)
    return content


def _fault(problem: Exception) -> str:
    """A connection's end in few words."""
    for kind, words in _FAULTS.items():
        if isinstance(problem, kind):
            return words
    if isinstance(problem, OSError) and problem.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH}:
        return "host unreachable"
    return f"{type(problem).__name__}"


def _record(
    planned: Planned,
    intended: float,
    sent: float,
    done: float,
    response: HTTPSocketPoolResponse | None,
    content: bytes,
    fault: str | None,
) -> Record:
    headers: Mapping[str, str] = {}
    status, answer = 0, None
    if response is not None and fault is None:
        status, headers = response.status_code, _flat(response)
        answer = _json(content) if status == 200 else None
        fault = next(answer_faults(status, headers, answer, planned.expected), None)
    stages, batch_size = server_timing(headers.get("server-timing", ""))
    body = answer if isinstance(answer, dict) and fault is None else {}
    return Record(
        index=planned.index,
        endpoint=planned.endpoint,
        width=planned.expected.width,
        height=planned.expected.height,
        output_format=planned.expected.output_format,
        num_images=planned.expected.num_images,
        steps=planned.body["num_inference_steps"],
        intended=intended,
        sent=sent,
        done=done,
        status=status,
        error=fault,
        retry_after=_number(headers.get("retry-after")) if status in REFUSALS else None,
        stages=stages,
        batch_size=batch_size,
        billable_units=int(_number(headers.get(BILLING_HEADER)) or 0),
        response_bytes=len(content),
        seed=body.get("seed"),
        flagged=any(body.get("has_nsfw_concepts", ())),
        image_urls=tuple(image["url"] for image in body.get("images", ())),
    )


def _flat(response: HTTPSocketPoolResponse) -> dict[str, str]:
    """Header names in small letters; of several headers of one name all, by commas."""
    headers: dict[str, str] = {}
    for name, value in response.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else str(value)
    return headers


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _number(value: str | None) -> float | None:
    return float(value) if value is not None and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value.strip()) else None
