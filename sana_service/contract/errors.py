"""What a client is told when a request fails.

    bytes --> JSON --> request model --> job --> artifact --> stored image --> response
      |        |            |             |          |             |
     413     400           422        429, 503   504, 503, 500    503
     415

    ServiceError                500  fixed text, the trace goes to the log
    |-- NotFound                404
    |-- MethodNotAllowed        405  Allow
    |-- Unauthorized            401  WWW-Authenticate
    |-- BodyTooLarge            413
    |-- HeadersTooLarge         431
    |-- UnsupportedMediaType    415
    |-- InvalidBody             400  detail is a list
    |-- InvalidFields           422  detail is a list
    |-- Overloaded              429  Retry-After
    |-- Unavailable             503  Retry-After
    `-- DeadlinePassed          504

Errors are raised where the fact is known and become a response once, in `http.boundary`. The text
of an exception that is not in this tree never leaves the process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from sana_service.engine.errors import (
    DeadlineExceeded,
    DeadlineOutOfReach,
    EngineError,
    NotReady,
    OutOfDeviceMemory,
    QueueFull,
)

DEFAULT_RETRY_AFTER_SECONDS = 5

CLIENT_LEFT_STATUS = 499
"""Counted and logged for a request whose client left, as nginx does; nobody receives it."""

Detail = str | list[dict[str, Any]]


class ServiceError(Exception):
    """An error with an answer.

    Args:
        detail: what the client reads.
        headers: response headers of this error.
    """

    status = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(self, detail: Detail | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.detail: Detail = detail if detail is not None else self.status.phrase
        self.headers = dict(headers or {})
        super().__init__(self.detail)

    @property
    def body(self) -> dict[str, Detail]:
        return {"detail": self.detail}


class NotFound(ServiceError):
    status = HTTPStatus.NOT_FOUND


class MethodNotAllowed(ServiceError):
    status = HTTPStatus.METHOD_NOT_ALLOWED

    def __init__(self, allowed: str) -> None:
        super().__init__(headers={"allow": allowed})


class Unauthorized(ServiceError):
    status = HTTPStatus.UNAUTHORIZED

    def __init__(self, detail: str) -> None:
        super().__init__(detail, {"www-authenticate": "Bearer"})


class BodyTooLarge(ServiceError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class HeadersTooLarge(ServiceError):
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


class UnsupportedMediaType(ServiceError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class InvalidBody(ServiceError):
    status = HTTPStatus.BAD_REQUEST

    def __init__(self, message: str) -> None:
        super().__init__([{"loc": ["body"], "msg": message, "type": "json_invalid"}])


class InvalidFields(ServiceError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY

    def __init__(self, error: ValidationError) -> None:
        super().__init__(validation_detail(error))


class _RetryLater(ServiceError):
    def __init__(self, detail: str, retry_after_seconds: float = DEFAULT_RETRY_AFTER_SECONDS) -> None:
        super().__init__(detail, {"retry-after": str(max(1, math.ceil(retry_after_seconds)))})


class Overloaded(_RetryLater):
    status = HTTPStatus.TOO_MANY_REQUESTS


class Unavailable(_RetryLater):
    status = HTTPStatus.SERVICE_UNAVAILABLE


class DeadlinePassed(ServiceError):
    status = HTTPStatus.GATEWAY_TIMEOUT


def from_engine(error: EngineError) -> ServiceError:
    """The answer to a job that ended without an artifact."""
    match error:
        case DeadlineOutOfReach():
            return Overloaded(
                "The queue is too long for this request's deadline, retry later.", error.retry_after_seconds
            )
        case QueueFull():
            return Overloaded("The queue is full, retry later.", error.retry_after_seconds)
        case NotReady():
            return Unavailable("The service is not ready, retry later.")
        case OutOfDeviceMemory():
            return Unavailable("The device has too little memory for this request; ask for fewer or smaller images.")
        case DeadlineExceeded():
            return DeadlinePassed("The request's deadline passed before the image was done.")
    return ServiceError()


def validation_detail(error: ValidationError) -> list[dict[str, Any]]:
    """One entry for each fault, in fal's shape: `loc` starts with "body", no arm of a union in it."""
    entries = []
    for fault in error.errors(include_url=False):
        loc = _without_union_arm(fault["loc"], fault["type"], fault["input"])
        if loc is None:
            continue
        entry: dict[str, Any] = {
            "loc": ["body", *loc],
            "msg": fault["msg"],
            "type": fault["type"],
            "input": _json_safe(fault["input"]),
        }
        if "ctx" in fault:
            entry["ctx"] = _json_safe(fault["ctx"])
        entries.append(entry)
    return entries


def _without_union_arm(loc: tuple[int | str, ...], kind: str, value: Any) -> tuple[int | str, ...] | None:
    """The location as the client wrote it; None for faults of the arm that the client did not mean.

    pydantic tries both arms of `image_size` and reports each under the arm's name: an object was
    meant as `ImageSize`, anything else as a preset.
    """
    if loc[0] != "image_size" or len(loc) == 1:
        return loc
    if kind == "literal_error":
        return None if isinstance(value, dict) else loc[:1]
    return None if kind == "model_type" else (loc[0], *loc[2:])


def _json_safe(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)
