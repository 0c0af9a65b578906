"""The ASGI application around BentoML's: what a request passes through, in order.

envelope     request id, time spent
CORS         when origins are configured
boundary     errors become responses
routes       404, 405, POST / is /generate
keys         401
body         413, 415, 400, 422
endpoints    files and the OpenAPI document; everything else is BentoML's
"""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from sana_service.contract.billing import BILLING_HEADER
from sana_service.contract.openapi import openapi_document
from sana_service.http.body import RequestBody
from sana_service.http.boundary import ErrorBoundary
from sana_service.http.endpoints import Files, document_route
from sana_service.http.envelope import REQUEST_ID_HEADER, Envelope
from sana_service.http.keys import ApiKeys, read_key_digests
from sana_service.http.routes import FILES_PREFIX, KnownRoutes
from sana_service.settings import Settings
from sana_service.storage import Storage

_EXPOSED_HEADERS = (BILLING_HEADER, REQUEST_ID_HEADER, "Server-Timing", "Retry-After")


def wrap(bentoml_app: ASGIApp, settings: Settings, storage: Storage) -> ASGIApp:
    """BentoML's application inside the service's own HTTP layer."""
    document = openapi_document(max_pixels=settings.max_pixels, secured=settings.api_keys_file is not None)
    app: ASGIApp = Router(
        routes=[
            Route(FILES_PREFIX + "{name}", Files(storage, settings.file_ttl_seconds).__call__),
            document_route("/openapi.json", document),
            document_route("/docs.json", document),
        ],
        default=bentoml_app,
        redirect_slashes=False,
    )
    app = RequestBody(app, settings.max_pixels)
    if settings.api_keys_file is not None:
        app = ApiKeys(app, read_key_digests(settings.api_keys_file))
    app = ErrorBoundary(KnownRoutes(app))
    if settings.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", REQUEST_ID_HEADER],
            expose_headers=_EXPOSED_HEADERS,
        )
    return _HttpOnly(Envelope(app), bentoml_app)


class _HttpOnly:
    """Lifespan events go to BentoML alone; the router would answer them itself."""

    def __init__(self, http_app: ASGIApp, bentoml_app: ASGIApp) -> None:
        self._http_app = http_app
        self._bentoml_app = bentoml_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._http_app if scope["type"] == "http" else self._bentoml_app
        await app(scope, receive, send)
