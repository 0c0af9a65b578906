"""The page at `/`, the API's documentation at `/docs`, and their assets: fixed files, read once.

Everything comes from this package, and the content security policy lets a browser speak to this host
alone. The page itself needs no API key; what it calls does.
"""

from __future__ import annotations

import hashlib
import html
import json
from importlib.resources import files
from typing import get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sana_service import __version__
from sana_service.contract.errors import NotFound
from sana_service.contract.sizes import PRESET_NAMES
from sana_service.contract.styles import StyleName
from sana_service.http.routes import ASSETS_PREFIX
from sana_service.settings import Settings

_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
# What the bundled model can draw; the full checkpoints draw anything, these too.
_IDEAS = (
    "a red circle on a blue background",
    "a large purple star on a white background",
    "a small yellow square on a green background",
)


def page_routes(settings: Settings) -> list[Route]:
    """`/`, `/docs` and `/assets/{name}`."""
    assets = {
        file.name: file.read_bytes()
        for file in files("sana_service").joinpath("page").iterdir()
        if file.name.rpartition(".")[2] in _MEDIA_TYPES
    }
    config = html.escape(json.dumps(_config(settings)), quote=True).encode()
    pages = {name: assets.pop(f"{name}.html").replace(b"__CONFIG__", config) for name in ("index", "docs")}

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in assets:
            raise NotFound
        return _answer(request, assets[name], _MEDIA_TYPES[name.rpartition(".")[2]])

    async def index(request: Request) -> Response:
        return _answer(request, pages["index"], _MEDIA_TYPES["html"])

    async def docs(request: Request) -> Response:
        return _answer(request, pages["docs"], _MEDIA_TYPES["html"])

    return [Route("/", index), Route("/docs", docs), Route(ASSETS_PREFIX + "{name}", asset)]


def _config(settings: Settings) -> dict[str, object]:
    return {
        "app": settings.app,
        "ideas": _IDEAS,
        "max_pixels": settings.max_pixels,
        "presets": dict.fromkeys(PRESET_NAMES, True),
        "styles": get_args(StyleName),
        "version": __version__,
    }


def _answer(request: Request, content: bytes, media_type: str) -> Response:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    # Asked for anew each time, so that a page never meets another version's assets.
    headers = {**_HEADERS, "etag": etag, "cache-control": "no-cache"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
