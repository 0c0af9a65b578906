"""The routes that BentoML does not answer: image files and the OpenAPI document."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sana_service.contract.errors import NotFound, Unavailable
from sana_service.storage import Storage, StorageError


class Files:
    """`GET /files/{name}`: a stored image, from whichever storage is configured."""

    def __init__(self, storage: Storage, max_age_seconds: int) -> None:
        self._storage = storage
        # names are random and never reused, so what a name stands for never changes
        self._cache_control = f"public, max-age={max_age_seconds}, immutable"

    async def __call__(self, request: Request) -> Response:
        name = request.path_params["name"]
        try:
            stored = await asyncio.to_thread(self._storage.open, name)
        except StorageError as error:
            raise Unavailable("The image storage does not answer, retry later.") from error
        if stored is None:
            raise NotFound("No such file, or it has expired.")
        etag = f'"{name}"'
        headers = {
            "cache-control": self._cache_control,
            "etag": etag,
            "x-content-type-options": "nosniff",
        }
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(stored.data, media_type=stored.content_type, headers=headers)


def document_route(path: str, document: dict[str, Any]) -> Route:
    """A route that answers a fixed JSON document."""

    async def answer(_: Request) -> Response:
        return JSONResponse(document)

    return Route(path, answer)
