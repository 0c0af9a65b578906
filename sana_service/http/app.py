"""The ASGI application around BentoML's: what a request passes through, in order.

envelope     request id, time spent
counter      responses by kind of route and status
traces       a span for each POST, where there is a collector
CORS         when origins are configured
boundary     errors become responses
headers      431
routes       404, 405, POST / is /generate
keys         401
body         413, 415, 400, 422
endpoints    files, the page, the OpenAPI document, the queue, OpenAI's routes; everything else is BentoML's

A Host that starts with `queue.` puts the queue's prefix before the path, outside of all this but the
envelope and CORS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from sana_service import tracing
from sana_service.contract import fal
from sana_service.contract.answers import PRECISION_HEADER
from sana_service.contract.billing import BILLING_HEADER
from sana_service.contract.idempotency import IDEMPOTENCY_HEADER, REPLAYED_HEADER
from sana_service.contract.openapi import openapi_document
from sana_service.http.body import HeaderLimit, RequestBody
from sana_service.http.boundary import ErrorBoundary
from sana_service.http.counting import ResponseCounter
from sana_service.http.endpoints import Files, document_route
from sana_service.http.envelope import REQUEST_ID_HEADER, Envelope
from sana_service.http.fal import Queue, key_set_response
from sana_service.http.keys import ApiKeys, read_key_digests
from sana_service.http.openai import Images
from sana_service.http.page import page_routes
from sana_service.http.routes import (
    FILES_PREFIX,
    GENERATE,
    OPENAI_PREFIX,
    QUEUE_PREFIX,
    SPRINT,
    KnownRoutes,
    QueueHost,
)
from sana_service.http.tracing import Traced
from sana_service.settings import Settings
from sana_service.storage import Storage

if TYPE_CHECKING:
    from sana_service.runtime import Runtime

_EXPOSED_HEADERS = (
    BILLING_HEADER,
    REQUEST_ID_HEADER,
    "Server-Timing",
    "Retry-After",
    REPLAYED_HEADER,
    PRECISION_HEADER,
    fal.REQUEST_ID_HEADER,
    fal.ERROR_TYPE_HEADER,
)
_REQUEST_HEADERS = (
    "authorization",
    "content-type",
    IDEMPOTENCY_HEADER,
    REQUEST_ID_HEADER,
    fal.TIMEOUT_HEADER,
    "x-fal-queue-priority",
    "x-fal-no-retry",
    "x-fal-object-lifecycle-preference",
    "x-fal-runner-hint",
)


def wrap(bentoml_app: ASGIApp, settings: Settings, storage: Storage, runtime: Callable[[], Runtime]) -> ASGIApp:
    """BentoML's application inside the service's own HTTP layer.

    Args:
        runtime: gives this process's; there is one once requests come.
    """

    async def key_set(_: Request) -> Response:
        return key_set_response(runtime().jobs)

    document = openapi_document(max_pixels=settings.max_pixels, secured=settings.api_keys_file is not None)
    app: ASGIApp = Router(
        routes=[
            Route(FILES_PREFIX + "{name}", Files(storage, settings.file_ttl_seconds).__call__),
            document_route("/openapi.json", document),
            document_route("/docs.json", document),
            Route("/.well-known/jwks.json", key_set),
            *page_routes(settings),
        ],
        default=bentoml_app,
        redirect_slashes=False,
    )
    app = _ByPrefix(
        {
            # Known by their whole path already; the router would try its own routes and then BentoML's.
            GENERATE: bentoml_app,
            SPRINT: bentoml_app,
            f"{QUEUE_PREFIX}/": Queue(settings, lambda: runtime().jobs),
            f"{OPENAI_PREFIX}/": Images(settings.max_pixels, runtime),
        },
        app,
    )
    app = RequestBody(app, settings.max_pixels)
    if settings.api_keys_file is not None:
        app = ApiKeys(app, read_key_digests(settings.api_keys_file))
    app = QueueHost(ErrorBoundary(HeaderLimit(KnownRoutes(app, settings.app))), settings.app)
    if settings.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT"],
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_EXPOSED_HEADERS,
        )
    if tracing.is_on(os.environ):
        app = Traced(app, lambda: runtime().tracing, settings.app)
    return _HttpOnly(Envelope(ResponseCounter(app, settings.app)), bentoml_app)


class _HttpOnly:
    """Lifespan events go to BentoML alone; the router would answer them itself."""

    def __init__(self, http_app: ASGIApp, bentoml_app: ASGIApp) -> None:
        self._http_app = http_app
        self._bentoml_app = bentoml_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._http_app if scope["type"] == "http" else self._bentoml_app
        await app(scope, receive, send)


class _ByPrefix:
    """Routes of other protocols, by how their paths begin; they keep their whole path."""

    def __init__(self, apps: Mapping[str, ASGIApp], default: ASGIApp) -> None:
        self._apps = apps
        self._default = default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = next((app for prefix, app in self._apps.items() if scope["path"].startswith(prefix)), self._default)
        await app(scope, receive, send)
