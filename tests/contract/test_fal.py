"""The request headers of fal's clients: honoured or refused."""

from __future__ import annotations

import pytest

from sana_service.contract.errors import BodyTooLarge, NotFound, Overloaded, ServiceError, Unauthorized
from sana_service.contract.fal import BadHeader, Wishes, error_answer, error_type, read_wishes


@pytest.mark.parametrize(
    ("headers", "wishes"),
    [
        ({}, Wishes()),
        ({"x-fal-request-timeout": "1.5"}, Wishes(start_within_seconds=1.5)),
        ({"x-fal-queue-priority": "low"}, Wishes(low_priority=True)),
        ({"x-fal-queue-priority": "Normal"}, Wishes()),
        ({"x-fal-no-retry": "1"}, Wishes(retry=False)),
        ({"x-fal-no-retry": "0"}, Wishes()),
        ({"x-fal-store-io": "1"}, Wishes()),
        ({"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 60}'}, Wishes(lifetime_seconds=60.0)),
        ({"x-fal-runner-hint": "anything"}, Wishes()),
    ],
)
def test_wishes(headers, wishes):
    assert read_wishes(headers, 3600) == wishes


@pytest.mark.parametrize(
    "headers",
    [
        {"x-fal-request-timeout": "soon"},
        {"x-fal-request-timeout": "0"},
        {"x-fal-request-timeout": "-1"},
        {"x-fal-request-timeout": "nan"},
        {"x-fal-request-timeout": "inf"},
        {"x-fal-queue-priority": "high"},
        {"x-fal-no-retry": "maybe"},
        {"x-fal-store-io": "0"},
        {"x-fal-object-lifecycle-preference": "60"},
        {"x-fal-object-lifecycle-preference": "{"},
        {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 3601}'},
        {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": null}'},
        {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": true}'},
        {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 60, "initial_acl": {}}'},
    ],
)
def test_what_cannot_be_honoured_is_refused(headers):
    with pytest.raises(BadHeader) as caught:
        read_wishes(headers, 3600)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "bad_request"), (422, "bad_request"), (429, "concurrent_requests_limit"), (499, "client_cancelled"),
     (500, "internal_error"), (503, "runner_scheduling_failure"), (504, "request_timeout")],
)  # fmt: skip
def test_error_types(status, kind):
    assert error_type(status) == kind


def test_errors_in_fals_shape():
    body, headers = error_answer(Overloaded("full", 7))
    assert body == {"detail": "full", "error_type": "concurrent_requests_limit"}
    assert headers == {"retry-after": "7", "x-fal-error-type": "concurrent_requests_limit"}
    assert error_answer(BodyTooLarge("big"))[0]["error_type"] == "bad_request"
    assert error_answer(ServiceError())[0] == {"detail": "Internal Server Error", "error_type": "internal_error"}
    assert error_answer(NotFound("gone"))[0] == {"detail": "gone"}
    assert error_answer(Unauthorized("key"))[1] == {"www-authenticate": "Bearer"}
