"""The `Idempotency-Key` header: a client's promise that two requests are one. Pure."""

from __future__ import annotations

import re
from http import HTTPStatus

from sana_service.contract.errors import ServiceError

IDEMPOTENCY_HEADER = "idempotency-key"
REPLAYED_HEADER = "idempotent-replayed"
KEY_PATTERN = r"[A-Za-z0-9._:-]{1,128}"
_KEY = re.compile(KEY_PATTERN)
_LOC = ["header", "Idempotency-Key"]


class InvalidKey(ServiceError):
    """The header is malformed, or asks for what cannot be kept."""

    status = HTTPStatus.BAD_REQUEST

    def __init__(self, message: str) -> None:
        super().__init__([{"loc": _LOC, "msg": message, "type": "idempotency_key_invalid"}])


class KeyReused(ServiceError):
    """The key came before with another request."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY

    def __init__(self) -> None:
        message = "The key came before with another request; a new request needs a new key"
        super().__init__([{"loc": _LOC, "msg": message, "type": "idempotency_key_reused"}])


class Superseded(ServiceError):
    """Another replica took the request over while this one did not answer; never sent to a client."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


def read_idempotency_key(values: list[str], *, inline: bool) -> str | None:
    """The key of a request; None where it has none.

    Args:
        values: of the header, one for each time that it came.
        inline: whether the answer would hold the pictures themselves.

    Raises:
        InvalidKey: malformed, or of an answer that is too large to keep.
    """
    if not values:
        return None
    if len(values) > 1 or not _KEY.fullmatch(values[0]):
        raise InvalidKey("The key must come once and be 1 to 128 of A-Z a-z 0-9 . _ : -")
    if inline:
        raise InvalidKey("The answers of sync_mode are not kept; leave out the key, or sync_mode")
    return values[0]
