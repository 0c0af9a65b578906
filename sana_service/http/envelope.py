"""What every response carries: a request id, the time spent, and no bill for an error."""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sana_service.contract.billing import BILLING_HEADER
from sana_service.telemetry import request_id

REQUEST_ID_HEADER = "x-request-id"
_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Envelope:
    """Outermost: binds the request id to the log context and completes the response's headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        identifier = sent if _WELL_FORMED.fullmatch(sent) else uuid.uuid4().hex
        started = time.perf_counter()

        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = identifier
                total = f"total;dur={(time.perf_counter() - started) * 1000:.1f}"
                stages = headers.get("server-timing")
                headers.setdefault("x-content-type-options", "nosniff")
                headers["server-timing"] = f"{stages}, {total}" if stages else total
                if message["status"] >= 400:
                    headers[BILLING_HEADER] = "0"
            await send(message)

        token = request_id.set(identifier)
        try:
            await self.app(scope, receive, complete)
        finally:
            request_id.reset(token)
