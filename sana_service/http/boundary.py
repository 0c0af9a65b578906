"""Where errors become responses: the one shape `{"detail": ...}` on every route.

A `ServiceError` is answered as it says. Any other exception is logged and answered with a fixed
text. What BentoML and Starlette answer by themselves (plain text, `{"error": ...}`, a list) is
brought into the same shape. Where another service's protocol is spoken, its shape is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sana_service.contract import fal, openai
from sana_service.contract.errors import DEFAULT_RETRY_AFTER_SECONDS, ServiceError
from sana_service.http.routes import OPENAI_PREFIX, QUEUE_PREFIX
from sana_service.telemetry import get_logger

logger = get_logger("http")

Dialect = Callable[[ServiceError], tuple[dict[str, Any], dict[str, str]]]

_RETRIED = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}


def error_response(error: ServiceError) -> JSONResponse:
    """The response that an error stands for."""
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


class ErrorBoundary:
    """Turns exceptions and foreign error bodies into the contract's shape."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        dialect = _dialect(scope["path"])
        reshaper = _Reshaper(send) if dialect is None else _Passer(send)
        try:
            await self.app(scope, receive, reshaper.send)
        except ServiceError as error:
            failure = error
        except ClientDisconnect:
            return
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            failure = ServiceError()
        else:
            return
        response = error_response(failure)
        if dialect is not None:
            body, headers = dialect(failure)
            status = openai.answered_status(failure) if dialect is openai.error_answer else failure.status
            response = JSONResponse(body, status_code=status, headers=headers)
        if reshaper.started:
            raise RuntimeError("the response broke off after its start")
        await response(scope, receive, send)


def _dialect(path: str) -> Dialect | None:
    """The error shape of another service's protocol, on its routes."""
    for prefix, dialect in ((OPENAI_PREFIX, openai.error_answer), (QUEUE_PREFIX, fal.error_answer)):
        if path.startswith(f"{prefix}/"):
            return dialect
    return None


class _Passer:
    """Passes responses through: the other protocols' own errors have their shape already."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def send(self, message: Message) -> None:
        self.started = True
        await self._send(message)


class _Reshaper:
    """Passes responses through, and holds back an error's body until it is whole."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = bytearray()
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
            return
        if self._start is None:
            self.started = True
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            await self._finish(self._start)

    async def _finish(self, start: Message) -> None:
        body = _reshape(start["status"], bytes(self._body))
        headers = MutableHeaders(scope=start)
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(body))
        if start["status"] in _RETRIED and "retry-after" not in headers:
            headers["retry-after"] = str(DEFAULT_RETRY_AFTER_SECONDS)
        self.started = True
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def _reshape(status: int, body: bytes) -> bytes:
    try:
        data = json.loads(body)
    except ValueError:
        data = None
    if isinstance(data, dict) and "detail" in data and "error" not in data:
        return body
    return json.dumps({"detail": HTTPStatus(status).phrase}).encode()
