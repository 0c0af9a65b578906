"""The request's headers, bounded; its body: bounded, JSON, and valid, before BentoML sees it.

The checks come in the contract's order: size, media type, JSON, fields. The body goes on as it
came, so BentoML's own parsing finds only what passed here.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sana_service.contract.errors import BodyTooLarge, HeadersTooLarge, InvalidBody, InvalidFields, UnsupportedMediaType
from sana_service.contract.schemas import SprintInput, TextToImageInput
from sana_service.http.connection import MAX_HEADER_BYTES
from sana_service.http.routes import GENERATE, SPRINT

MAX_BODY_BYTES = 256 * 1024
# A client that is still sending when the connection closes sees a reset instead of the answer.
_MAX_DISCARDED_BYTES = 16 * 1024 * 1024

_MODELS: dict[str, type[BaseModel]] = {GENERATE: TextToImageInput, SPRINT: SprintInput}


class HeaderLimit:
    """431. The connection refuses headers that go on and on; these are whole, and came at once."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head_bytes = len(scope["query_string"]) + len(scope["path"])
        if head_bytes + sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            raise HeadersTooLarge(f"The headers must be at most {MAX_HEADER_BYTES} bytes.")
        await self.app(scope, receive, send)


class RequestBody:
    """413, 415, 400 and 422."""

    def __init__(self, app: ASGIApp, max_pixels: int) -> None:
        self.app = app
        self._context = {"max_pixels": max_pixels}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = _MODELS.get(scope["path"])
        if model is None:
            if scope["method"] == "PUT" and "content-type" in Headers(scope=scope):
                _check_media_type(Headers(scope=scope))  # cancelling wants no body, and no other kind of one
            await self.app(scope, receive, send)
            return
        try:
            body, data = await _read_object(scope, receive)
        except ClientDisconnect:
            return
        try:
            model.model_validate(data, context=self._context)
        except ValidationError as error:
            raise InvalidFields(error) from error
        await self.app(scope, _replay(body, receive), send)


async def read_json(scope: Scope, receive: Receive) -> tuple[str, dict[str, Any]]:
    """A request's JSON object, as text and parsed: 413, 415 and 400.

    Raises:
        ClientDisconnect: the client left before it had sent everything.
    """
    body, data = await _read_object(scope, receive)
    return body.decode(), data


async def _read_object(scope: Scope, receive: Receive) -> tuple[bytes, dict[str, Any]]:
    body = await _read(receive)
    _check_media_type(Headers(scope=scope))
    return body, _parse(body)


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    received_bytes = 0
    more = True
    while more and received_bytes <= _MAX_DISCARDED_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        received_bytes += len(chunk)
        if received_bytes <= MAX_BODY_BYTES:
            body += chunk
        more = message.get("more_body", False)
    if received_bytes > MAX_BODY_BYTES:
        raise BodyTooLarge(f"The body must be at most {MAX_BODY_BYTES} bytes.")
    return bytes(body)


def _check_media_type(headers: Headers) -> None:
    if "content-encoding" in headers:
        raise UnsupportedMediaType("The body must not have a Content-Encoding.")
    media_types = [value.partition(";")[0].strip().lower() for value in headers.getlist("content-type")]
    if media_types != ["application/json"]:
        raise UnsupportedMediaType("The Content-Type must be application/json.")


def _parse(body: bytes) -> dict[str, Any]:
    if not body.strip():
        raise InvalidBody("The body is empty; a JSON object is needed")
    try:
        data = from_json(body)
    except ValueError as error:
        raise InvalidBody(f"The body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidBody("The body must be a JSON object")
    return data


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, and then what the connection gives."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
