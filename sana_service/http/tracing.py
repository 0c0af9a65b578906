"""A span for each request that may draw; reading, probes and metrics have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from opentelemetry.trace import Status, StatusCode
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sana_service.http.counting import route_kind
from sana_service.http.routes import DEFAULT_APP

if TYPE_CHECKING:
    from sana_service.tracing import Tracing


class Traced:
    """Begins a request's span, and ends it with the response's status."""

    def __init__(self, app: ASGIApp, tracing: Callable[[], Tracing], app_name: str = DEFAULT_APP) -> None:
        self.app = app
        self._tracing = tracing
        self._app_name = app_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        kind = route_kind(scope["path"], "POST", self._app_name)
        with self._tracing().served("POST", kind, Headers(scope=scope)) as span:

            async def marked(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_attribute("error.type", str(message["status"]))
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            await self.app(scope, receive, marked)
