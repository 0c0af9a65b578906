"""Counts what is answered, by kind of route and status.

The kinds are few and fixed, and a status is this service's own choice: nothing that a client sends becomes a label.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sana_service.http.routes import (
    ASSETS_PREFIX,
    DEFAULT_APP,
    FILES_PREFIX,
    GENERATE,
    OPENAI_PREFIX,
    QUEUE_PREFIX,
    SPRINT,
)
from sana_service.metrics import RESPONSES, series

_KINDS = {
    GENERATE: "generate",
    SPRINT: "sprint",
    "/": "page",
    "/docs": "page",
    "/livez": "probe",
    "/readyz": "probe",
    "/metrics": "metrics",
    "/openapi.json": "document",
    "/docs.json": "document",
    "/schema.json": "document",
    "/.well-known/jwks.json": "document",
}


def route_kind(path: str, method: str, app_name: str = DEFAULT_APP) -> str:
    """What sort of route a path is; `other` where it is none."""
    if path == "/" and method == "POST":
        return "generate"
    if path in _KINDS:
        return _KINDS[path]
    prefixes = {
        FILES_PREFIX: "files",
        ASSETS_PREFIX: "page",
        f"{OPENAI_PREFIX}/": "openai",
        f"{QUEUE_PREFIX}/": "fal",
        f"/{app_name}/": "fal",
    }
    return next((kind for prefix, kind in prefixes.items() if f"{path}/".startswith(prefix)), "other")


class ResponseCounter:
    """Counts each response where it begins; one that never begins, since the client left, is not counted."""

    def __init__(self, app: ASGIApp, app_name: str = DEFAULT_APP) -> None:
        self.app = app
        self._app_name = app_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        kind = route_kind(scope["path"], scope["method"], self._app_name)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                series(RESPONSES, kind, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted)
