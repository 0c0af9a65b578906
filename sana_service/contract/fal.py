"""fal's queue protocol: request headers, status objects, error types. Pure.

Headers that cannot be honoured are refused instead of ignored; `docs/clients.md` lists them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from sana_service.contract.errors import ServiceError

REQUEST_ID_HEADER = "x-fal-request-id"
ERROR_TYPE_HEADER = "x-fal-error-type"
TIMEOUT_HEADER = "x-fal-request-timeout"
TIMEOUT_TYPE_HEADER = "x-fal-request-timeout-type"

_ERROR_TYPES = {
    429: "concurrent_requests_limit",
    499: "client_cancelled",
    503: "runner_scheduling_failure",
    504: "request_timeout",
}
_CLIENT_ERROR, _SERVER_ERROR = "bad_request", "internal_error"
_MAX_TIMEOUT_SECONDS = 7 * 24 * 3600.0


class BadHeader(ServiceError):
    """A header or query parameter is malformed, or asks for what the service does not do."""

    status = HTTPStatus.BAD_REQUEST


class StartTimeout(ServiceError):
    """The work had not begun when the client's own limit passed."""

    status = HTTPStatus.GATEWAY_TIMEOUT

    def __init__(self) -> None:
        super().__init__("The request was not started within its timeout.", {TIMEOUT_TYPE_HEADER: "user"})


@dataclass(frozen=True)
class Wishes:
    """What a request's headers ask for.

    Args:
        start_within_seconds: give up where the work has not begun by then.
        low_priority: behind all requests of normal priority.
        retry: whether the queue may try again.
        lifetime_seconds: after which the images are deleted; None for the operator's.
    """

    start_within_seconds: float | None = None
    low_priority: bool = False
    retry: bool = True
    lifetime_seconds: float | None = None


def read_wishes(headers: Mapping[str, str], max_lifetime_seconds: float) -> Wishes:
    """The wishes of a request.

    Args:
        headers: by lower-case name.
        max_lifetime_seconds: how long images are kept at most.

    Raises:
        BadHeader: one is malformed or cannot be met.
    """
    if headers.get("x-fal-store-io", "1").strip() not in {"", "1", "true"}:
        raise BadHeader("X-Fal-Store-IO: 0 cannot be honoured: use the route without a queue, with sync_mode.")
    return Wishes(
        start_within_seconds=_timeout(headers.get(TIMEOUT_HEADER)),
        low_priority=_choice(headers, "x-fal-queue-priority", {"normal": False, "low": True}, default="normal"),
        retry=not _choice(headers, "x-fal-no-retry", _FLAGS, default="0"),
        lifetime_seconds=_lifetime(headers.get("x-fal-object-lifecycle-preference"), max_lifetime_seconds),
    )


_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _choice(headers: Mapping[str, str], name: str, choices: Mapping[str, bool], default: str) -> bool:
    value = headers.get(name, default).strip().lower() or default
    if value not in choices:
        raise BadHeader(f"{name} must be one of {', '.join(choices)}.")
    return choices[value]


def _timeout(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MAX_TIMEOUT_SECONDS:
        raise BadHeader(f"{TIMEOUT_HEADER} must be a number of seconds above 0.")
    return seconds


def _lifetime(value: str | None, longest: float) -> float | None:
    if value is None:
        return None
    name = "x-fal-object-lifecycle-preference"
    try:
        wish = json.loads(value)
    except ValueError as error:
        raise BadHeader(f"{name} must be a JSON object.") from error
    if not isinstance(wish, dict) or set(wish) != {"expiration_duration_seconds"}:
        raise BadHeader(f"{name} must hold expiration_duration_seconds alone; there are no access rules here.")
    seconds = wish["expiration_duration_seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 1 <= seconds <= longest:
        raise BadHeader(f"{name}: images are kept between 1 and {longest:.0f} seconds on this service.")
    return float(seconds)


def error_type(status: int) -> str:
    """Fal's word for a status."""
    return _ERROR_TYPES.get(status, _CLIENT_ERROR if status < 500 else _SERVER_ERROR)


def error_answer(error: ServiceError) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of a refusal on a queue route."""
    kind = error_type(int(error.status))
    if error.status in {HTTPStatus.NOT_FOUND, HTTPStatus.UNAUTHORIZED, HTTPStatus.METHOD_NOT_ALLOWED}:
        return {"detail": error.detail}, error.headers
    return {"detail": error.detail, "error_type": kind}, {**error.headers, ERROR_TYPE_HEADER: kind}


Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]


@dataclass(frozen=True)
class Links:
    """A job's addresses.

    Args:
        response: scheme, host, path prefix, app and id.
    """

    response: str

    def as_dict(self) -> dict[str, str]:
        return {
            "response_url": self.response,
            "status_url": f"{self.response}/status",
            "cancel_url": f"{self.response}/cancel",
        }
