"""Two of BentoML's middlewares, exchanged for ones that do the same for less.

BentoML begins a span for each request, and one for each message of it, although nobody exports them, and runs each
request in a task of its own beside a timer that outlives it by minutes. Both cost more than the rest of BentoML
(docs/decisions.md). What they leave behind is kept: the identifiers in BentoML's log and in X-BentoML-Request-ID,
and the 504 after BentoML's timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from opentelemetry import context, trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def lean(app: Starlette) -> Starlette:
    """BentoML's application with the middlewares of this module; one that exports its own spans keeps making them."""
    exchanged: dict[Any, Any] = {TimeoutMiddleware: Timeout}
    if BentoMLContainer.tracing.exporter_type.get() is None:
        exchanged[OpenTelemetryMiddleware] = Identified
    app.user_middleware = [
        Middleware(exchanged.get(each.cls, each.cls), *each.args, **each.kwargs) for each in app.user_middleware
    ]
    return app


class Timeout:
    """504 for a request whose response has not begun in time; its work is cancelled.

    Args:
        timeout: seconds.
    """

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        self.app = app
        self._seconds = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def begun(message: Message) -> None:
            limit.reschedule(None)
            await send(message)

        try:
            async with asyncio.timeout(self._seconds) as limit:
                await self.app(scope, receive, begun)
        except TimeoutError:
            if not limit.expired():
                raise
            error = f"Not able to process the request in {self._seconds} seconds"
            await JSONResponse({"error": error}, status_code=504)(scope, receive, send)


class Identified:
    """Gives a request the identifiers of a span, the caller's trace among them, and makes no span.

    Args:
        tracer_provider: makes identifiers.
        server_request_hook: is told of what stands for the span; so BentoML learns its request id.
    """

    def __init__(
        self,
        app: ASGIApp,
        tracer_provider: TracerProvider,
        server_request_hook: Callable[[Any, Scope], None],
        **_: Any,
    ) -> None:
        self.app = app
        self._identifiers = tracer_provider.id_generator
        self._hook = server_request_hook

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        span = _Unmade(self._identity(Headers(scope=scope)))
        self._hook(span, scope)
        token = context.attach(trace.set_span_in_context(span))
        try:
            await self.app(scope, receive, send)
        finally:
            context.detach(token)

    def _identity(self, headers: Headers) -> trace.SpanContext:
        span_id = self._identifiers.generate_span_id()
        if "traceparent" in headers:
            caller = trace.get_current_span(extract(headers)).get_span_context()
            if caller.is_valid:
                return trace.SpanContext(caller.trace_id, span_id, False, caller.trace_flags, caller.trace_state)
        return trace.SpanContext(self._identifiers.generate_trace_id(), span_id, is_remote=False)


class _Unmade(trace.NonRecordingSpan):
    """Has its identity where those look for it who expect a span of the SDK."""

    @property
    def context(self) -> trace.SpanContext:
        return self.get_span_context()
