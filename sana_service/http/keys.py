"""API keys: who may call what is not public.

A key file has one key a line, plain or as `sha256:<64 hex digits>`; `#` starts a comment. Only
digests are kept, and every one of them is compared, in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sana_service.callers import caller
from sana_service.contract.errors import Unauthorized
from sana_service.http.routes import is_public

_COMMENT = re.compile(r"(^|\s)#.*")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_SCHEMES = {"key", "bearer"}


def read_key_digests(path: Path) -> tuple[bytes, ...]:
    """SHA-256 digests of the keys in a file.

    Raises:
        ValueError: the file cannot be read, holds no key, or holds a malformed digest; one line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"the file cannot be read: {reason}") from error
    digests = tuple(
        _digest(key, number) for number, line in enumerate(lines, 1) if (key := _COMMENT.sub("", line).strip())
    )
    if not digests:
        raise ValueError("the file holds no key")
    return digests


def _digest(key: str, line_number: int) -> bytes:
    if not key.startswith("sha256:"):
        return hashlib.sha256(key.encode()).digest()
    match = _DIGEST.fullmatch(key)
    if match is None:
        raise ValueError(f"line {line_number} must be sha256: and 64 hexadecimal digits")
    return bytes.fromhex(match[1])


class ApiKeys:
    """401 unless the request's key is known or its route is public; tells the rest whose key it is."""

    def __init__(self, app: ASGIApp, digests: tuple[bytes, ...]) -> None:
        self.app = app
        self._digests = digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_public(scope["path"], scope["method"]):
            await self.app(scope, receive, send)
            return
        token = caller.set(self._check(Headers(scope=scope).get("authorization")))
        try:
            await self.app(scope, receive, send)
        finally:
            caller.reset(token)

    def _check(self, authorization: str | None) -> bytes:
        if authorization is None:
            raise Unauthorized("An API key is needed: send `Authorization: Key <api key>`.")
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip(" \t").encode("latin-1")).digest()
        known = [hmac.compare_digest(digest, candidate) for candidate in self._digests]
        if scheme.lower() not in _SCHEMES or not any(known):
            raise Unauthorized("The API key is not valid.")
        return digest
