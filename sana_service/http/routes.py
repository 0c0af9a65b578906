"""The routes a client may call, and nothing beside them.

Unknown paths and wrong methods are refused here, before anything else looks at the request: so a
trailing slash is 404, and no path of a stranger's choosing becomes a label of a metric.
`POST /` is the reference's route and becomes `POST /generate`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sana_service.contract.errors import MethodNotAllowed, NotFound

GENERATE = "/generate"
SPRINT = "/sprint"
FILES_PREFIX = "/files/"
ASSETS_PREFIX = "/assets/"
QUEUE_PREFIX = "/queue"
OPENAI_PREFIX = "/v1"
DEFAULT_APP = "fal-ai/sana"

QUEUE_PREFIX_KEY = "sana.queue_prefix"
"""In the scope of a queue request: what stood before the app's name in the path that the client used."""
FAL_KEY = "sana.fal"
"""In the scope of a request that came by the app's name: its fal headers count."""

_READ = ("GET", "HEAD")
_METHODS: dict[str, tuple[str, ...]] = {
    "/": (*_READ, "POST"),
    GENERATE: ("POST",),
    SPRINT: ("POST",),
    "/openapi.json": _READ,
    "/docs.json": _READ,
    "/schema.json": _READ,
    "/livez": _READ,
    "/readyz": _READ,
    "/metrics": _READ,
    "/docs": _READ,
    "/.well-known/jwks.json": _READ,
    "/v1/images/generations": ("POST",),
    "/v1/models": _READ,
}
_MODEL = re.compile(r"/v1/models/[^/]+")
_JOB = re.compile(r"/requests/[^/]+(/status|/status/stream|/cancel)?")
_JOB_METHODS: Mapping[str | None, tuple[str, ...]] = {
    None: _READ,
    "/status": _READ,
    "/status/stream": ("GET",),
    "/cancel": ("PUT",),
}
_PUBLIC_PATHS = {"/", "/docs", "/livez", "/readyz", "/openapi.json", "/.well-known/jwks.json"}


def allowed_methods(path: str, app_name: str = DEFAULT_APP) -> tuple[str, ...]:
    """Methods of a path; none when there is no such route."""
    if path in _METHODS:
        return _METHODS[path]
    if _MODEL.fullmatch(path):
        return _READ
    for prefix in (f"/{app_name}", f"{QUEUE_PREFIX}/{app_name}"):
        if path in {prefix, f"{prefix}{SPRINT}"}:
            return ("POST",)
    job = _JOB.fullmatch(path.removeprefix(f"{QUEUE_PREFIX}/{app_name}"))
    if job is not None and path.startswith(QUEUE_PREFIX):
        return _JOB_METHODS[job[1]]
    for prefix in (FILES_PREFIX, ASSETS_PREFIX):
        name = path.removeprefix(prefix)
        if name != path and name and "/" not in name:
            return _READ
    return ()


def is_public(path: str, method: str) -> bool:
    """Whether the route is answered without an API key."""
    if method not in _READ:
        return False
    return path in _PUBLIC_PATHS or path.startswith((FILES_PREFIX, ASSETS_PREFIX))


class QueueHost:
    """Puts the queue's prefix before the app's name where the Host says it: fal's queue is the same path elsewhere."""

    def __init__(self, app: ASGIApp, app_name: str = DEFAULT_APP) -> None:
        self.app = app
        self._app_path = f"/{app_name}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith(f"{QUEUE_PREFIX}/"):
            scope = {**scope, QUEUE_PREFIX_KEY: QUEUE_PREFIX}
        elif (path == self._app_path or path.startswith(f"{self._app_path}/")) and _is_queue_host(scope):
            path = QUEUE_PREFIX + path
            scope = {**scope, "path": path, "raw_path": path.encode(), QUEUE_PREFIX_KEY: ""}
        await self.app(scope, receive, send)


def _is_queue_host(scope: Scope) -> bool:
    return Headers(scope=scope).get("host", "").lower().startswith("queue.")


class KnownRoutes:
    """404 and 405, and the aliases: the reference's route, and the app's name."""

    def __init__(self, app: ASGIApp, app_name: str = DEFAULT_APP) -> None:
        self.app = app
        self._app_name = app_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        methods = allowed_methods(path, self._app_name)
        if not methods:
            raise NotFound
        if scope["method"] not in methods:
            raise MethodNotAllowed(", ".join(methods))
        if path == "/" and scope["method"] == "POST":
            scope = _moved(scope, GENERATE)
        elif path == f"/{self._app_name}":
            scope = {**_moved(scope, GENERATE), FAL_KEY: True}
        elif path == f"/{self._app_name}{SPRINT}":
            scope = {**_moved(scope, SPRINT), FAL_KEY: True}
        await self.app(scope, receive, send)


def _moved(scope: Scope, path: str) -> Scope:
    return {**scope, "path": path, "raw_path": path.encode()}
