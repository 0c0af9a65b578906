"""A stand-in for BentoML's application: it answers what the test asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

Answer = Callable[[Request], Awaitable[Response]]


class Inner:
    """Records what reached it.

    Args:
        answer: what it answers; an echo of the parsed body when none is given.
    """

    def __init__(self, answer: Answer | None = None) -> None:
        self.requests: list[Request] = []
        self.cancelled = asyncio.Event()
        self._answer = answer or self._echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.requests.append(request)
        try:
            response = await self._answer(request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        await response(scope, receive, send)

    @staticmethod
    async def _echo(request: Request) -> Response:
        body = await request.body()
        return JSONResponse({"path": request.url.path, "body": body.decode()})


def client(app: ASGIApp, **options: Any) -> httpx.AsyncClient:
    """A client that talks to the app without a socket."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://sana.test", **options)


def call(app: ASGIApp, method: str, path: str, **options: Any) -> httpx.Response:
    """One request, from a test that is not asynchronous."""

    async def send() -> httpx.Response:
        async with client(app) as http:
            return await http.request(method, path, **options)

    return asyncio.run(send())
