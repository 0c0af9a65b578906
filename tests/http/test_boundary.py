import logging
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from sana_service.contract import errors
from sana_service.engine import errors as engine_errors
from sana_service.http.boundary import ErrorBoundary
from tests.http.stub import Inner, call


def answered(outcome: Response | Exception) -> Any:
    async def answer(_: Request) -> Response:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return call(ErrorBoundary(Inner(answer)), "GET", "/")


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (errors.NotFound("no"), 404, {}),
        (errors.MethodNotAllowed("GET, HEAD"), 405, {"allow": "GET, HEAD"}),
        (errors.Unauthorized("no"), 401, {"www-authenticate": "Bearer"}),
        (errors.BodyTooLarge("no"), 413, {}),
        (errors.UnsupportedMediaType("no"), 415, {}),
        (errors.Overloaded("no", 2.1), 429, {"retry-after": "3"}),
        (errors.Unavailable("no", 0.0), 503, {"retry-after": "1"}),
        (errors.DeadlinePassed("no"), 504, {}),
        (errors.ServiceError(), 500, {}),
    ],
)
def test_each_error_is_answered_with_its_status_and_headers(
    error: errors.ServiceError, status: int, headers: dict[str, str]
) -> None:
    response = answered(error)
    assert response.status_code == status
    assert response.json() == {"detail": error.detail}
    assert headers.items() <= dict(response.headers).items()


def test_an_invalid_body_is_a_list_of_one() -> None:
    response = answered(errors.InvalidBody("no"))
    assert response.status_code == 400
    assert response.json() == {"detail": [{"loc": ["body"], "msg": "no", "type": "json_invalid"}]}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (engine_errors.QueueFull(7.2), 429),
        (engine_errors.NotReady(), 503),
        (engine_errors.OutOfDeviceMemory(), 503),
        (engine_errors.DeadlineExceeded(), 504),
        (engine_errors.NotFinite(), 500),
        (engine_errors.JobCancelled(), 500),
    ],
)
def test_how_a_job_ended_decides_the_answer(error: engine_errors.EngineError, status: int) -> None:
    response = answered(errors.from_engine(error))
    assert response.status_code == status
    if status == 429:
        assert response.headers["retry-after"] == "8"


def test_an_unknown_exception_tells_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("sana").propagate = True
    response = answered(RuntimeError("/secret/path"))
    assert response.status_code == 500
    assert response.json() == {"detail": "Internal Server Error"}
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize(
    ("foreign", "status", "detail"),
    [
        (JSONResponse([{"error": "bad"}], 400), 400, "Bad Request"),
        (JSONResponse({"error": "x", "detail": []}, 400), 400, "Bad Request"),
        (PlainTextResponse("Service is not ready because ...", 503), 503, "Service Unavailable"),
        (
            JSONResponse({"error": "Not able to process the request in 5 seconds"}, 504),
            504,
            "Gateway Timeout",
        ),
        (PlainTextResponse("", 500), 500, "Internal Server Error"),
    ],
)
def test_what_bentoml_answers_by_itself_gets_the_same_shape(foreign: Response, status: int, detail: str) -> None:
    response = answered(foreign)
    assert (response.status_code, response.json()) == (status, {"detail": detail})
    assert response.headers["content-type"] == "application/json"
    assert ("retry-after" in response.headers) == (status == 503)


def test_a_body_in_the_contract_s_shape_passes_untouched() -> None:
    assert answered(JSONResponse({"detail": "kept"}, 503)).json() == {"detail": "kept"}
