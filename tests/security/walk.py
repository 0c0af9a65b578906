"""Asks every registered route without a server, and prints what it answered as JSON.

A process of its own: it imports `service.py`, which is not meant for a test's process. `python -m tests.security.walk`
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import bentoml
import httpx
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
MEDIA_TYPES = (
    "application/vnd.bentoml+pickle",
    "application/octet-stream",
    "application/x-pickle",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
    "text/plain",
    "application/jsonp",
)
PARAMETERS = {"{name}": "0" * 32 + ".png", "{id}": "0" * 32, "{filename}": "x", "{path:path}": "x"}
TRICKS = (
    "/files/../metrics",
    "/files/%2e%2e/metrics",
    "//metrics",
    "/./metrics",
    "/metrics/",
    "/METRICS",
    "/metrics%00",
    "/assets/../generate",
    "/files/x/../../schema.json",
    "/openapi.json/../schema.json",
    "/readyz;/metrics",
)


def registered(app: Any) -> set[str]:
    """Paths of every router inside an application, its parameters filled in; ours and BentoML's."""
    paths: set[str] = set()
    seen: set[int] = set()
    waiting = [app]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, str | bytes | int | float | type(None)):
            continue
        seen.add(id(one))
        routes = getattr(one, "routes", None)
        if isinstance(routes, list):
            paths |= {path for route in routes for path in _paths(route, "")}
        if isinstance(one, dict):
            waiting += one.values()
        elif type(one).__module__.startswith(("sana_service", "starlette", "service", "bentoml", "_bentoml")):
            waiting += list(getattr(one, "__dict__", {}).values())
            waiting += [getattr(one, name) for name in getattr(type(one), "__slots__", ()) if hasattr(one, name)]
    return paths


def _paths(route: BaseRoute, prefix: str) -> set[str]:
    if isinstance(route, Mount):
        return {path for inner in route.routes or [] for path in _paths(inner, prefix + route.path)}
    if isinstance(route, Route):
        path = prefix + route.path
        for parameter, value in PARAMETERS.items():
            path = path.replace(parameter, value)
        return {path}
    return set()


def known_to_the_layer() -> set[str]:
    """Paths that the project's own table lets through, with an example of each pattern."""
    from sana_service.http import routes

    job = "/queue/fal-ai/sana/requests/" + "0" * 32
    examples = {"/v1/models/sana", "/fal-ai/sana", "/fal-ai/sana/sprint", "/queue/fal-ai/sana"}
    examples |= {"/queue/fal-ai/sana/sprint", job, f"{job}/status", f"{job}/status/stream", f"{job}/cancel"}
    examples |= {f"{routes.FILES_PREFIX}{'0' * 32}.png", f"{routes.ASSETS_PREFIX}page.css"}
    return examples | set(routes._METHODS)


async def ask(key: str) -> dict[str, Any]:
    import service
    from sana_service.http.app import wrap

    # In place of BentoML's application stands one that answers 200: then what reaches it is seen to.
    app = wrap(Response("reached"), service.settings, service.storage, service._runtime)
    routers = registered(app) | registered(bentoml.Service.to_asgi(service.Sana))
    paths = sorted(routers | known_to_the_layer())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://sana.test", timeout=30) as http:
        anonymous = [
            [method, path, (await http.request(method, f"http://sana.test{path}")).status_code]
            for path in [*paths, *TRICKS]
            for method in METHODS
        ]
        wrong = [[path, (await http.get(path, headers={"authorization": f"Key {key}x"})).status_code] for path in paths]
        foreign = [
            [method, path, kind, (await http.request(method, path, content=b"\x80\x04N.", headers={
                "authorization": f"Key {key}", "content-type": kind})).status_code]
            for path in paths for method in ("POST", "PUT") for kind in MEDIA_TYPES
        ]  # fmt: skip
        pages = {path: dict((await http.get(path)).headers) for path in ("/", "/docs", "/assets/main.js")}
        listings = [[path, (await http.get(path)).status_code] for path in ("/files", "/files/", "/assets", "/assets/")]
        preflight = await http.options("/generate", headers={
            "origin": "https://evil.example", "access-control-request-method": "POST"})  # fmt: skip
    return {
        "routers": sorted(routers), "anonymous": anonymous, "wrong": wrong, "foreign": foreign, "pages": pages,
        "listings": listings, "preflight": [preflight.status_code, dict(preflight.headers)],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(sys.argv[1]))))
