"""The routes a client may call, and nothing beside them.

Unknown paths and wrong methods are refused here, before anything else looks at the request: so a
trailing slash is 404, and no path of a stranger's choosing becomes a label of a metric.
`POST /` is the reference's route and becomes `POST /generate`.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from sana_service.contract.errors import MethodNotAllowed, NotFound

GENERATE = "/generate"
SPRINT = "/sprint"
FILES_PREFIX = "/files/"
ASSETS_PREFIX = "/static_content/"

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
}
_PUBLIC_PATHS = {"/", "/livez", "/readyz", "/openapi.json"}


def allowed_methods(path: str) -> tuple[str, ...]:
    """Methods of a path; none when there is no such route."""
    if path in _METHODS:
        return _METHODS[path]
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


class KnownRoutes:
    """404 and 405, and the alias of the reference's route."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = allowed_methods(scope["path"])
        if not methods:
            raise NotFound
        if scope["method"] not in methods:
            raise MethodNotAllowed(", ".join(methods))
        if scope["path"] == "/" and scope["method"] == "POST":
            scope = {**scope, "path": GENERATE, "raw_path": GENERATE.encode()}
        await self.app(scope, receive, send)
