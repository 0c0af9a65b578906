import re

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sana_service.http.envelope import Envelope
from sana_service.telemetry import request_id
from tests.http.stub import Inner, call


@pytest.mark.parametrize("identifier", ["a", "A-b_c.9", "x" * 128])
def test_a_well_formed_request_id_is_echoed(identifier: str) -> None:
    response = call(Envelope(Inner()), "GET", "/", headers={"x-request-id": identifier})
    assert response.headers["x-request-id"] == identifier


@pytest.mark.parametrize("identifier", ["", "x" * 129, "a b", "a/b", "a\tb", "é".encode().decode("latin-1")])
def test_any_other_is_replaced(identifier: str) -> None:
    response = call(Envelope(Inner()), "GET", "/", headers={"x-request-id": identifier.encode("latin-1")})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


def test_the_id_is_in_the_log_context_of_the_request_alone() -> None:
    async def answer(_: Request) -> Response:
        return PlainTextResponse(request_id.get())

    assert call(Envelope(Inner(answer)), "GET", "/", headers={"x-request-id": "abc"}).text == "abc"
    assert request_id.get() == "-"


def test_stages_come_before_the_total_in_server_timing() -> None:
    async def answer(_: Request) -> Response:
        return PlainTextResponse("", headers={"Server-Timing": "denoise;dur=12.0"})

    timing = call(Envelope(Inner(answer)), "GET", "/").headers["server-timing"]
    assert re.fullmatch(r"denoise;dur=12\.0, total;dur=\d+\.\d", timing)


@pytest.mark.parametrize(("status", "units"), [(200, "8"), (400, "0"), (404, "0"), (500, "0"), (503, "0")])
def test_an_error_costs_nothing(status: int, units: str) -> None:
    async def answer(_: Request) -> Response:
        return Response(status_code=status, headers={"x-fal-billable-units": "8"})

    assert call(Envelope(Inner(answer)), "GET", "/").headers["x-fal-billable-units"] == units
