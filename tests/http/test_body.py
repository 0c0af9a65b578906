import asyncio
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sana_service.http.body import MAX_BODY_BYTES, HeaderLimit, RequestBody
from sana_service.http.boundary import ErrorBoundary
from tests.http.stub import Inner, call

JSON = {"content-type": "application/json"}


def post(content: bytes, headers: dict[str, str] | None = None, path: str = "/generate") -> httpx.Response:
    app = ErrorBoundary(RequestBody(Inner(), max_pixels=16_777_216))
    return call(app, "POST", path, content=content, headers=JSON if headers is None else headers)


def test_a_valid_body_goes_on_as_it_came() -> None:
    body = b' {"prompt": "a", "prompt":"b"} '
    assert post(body).json()["body"] == body.decode()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"  ", b"prompt=a", b"{", b'{"prompt": "a"', b'{"prompt": "a",}', b'{"prompt": "\\ud800"}', b"\xff",
        b"[]", b"null", b'"a"', b"7", b"[" * 100_000, b'{"prompt": "a"} x', b'{"seed": 1' + b"0" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_400(content: bytes) -> None:
    response = post(content)
    assert response.status_code == 400
    [entry] = response.json()["detail"]
    assert (entry["loc"], entry["type"]) == (["body"], "json_invalid")


def test_faults_of_fields_are_422() -> None:
    response = post(b'{"prompt": "a", "seed": NaN}')
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "seed"]
    assert response.json()["detail"][0]["input"] == "nan"


def test_the_area_limit_is_the_operator_s() -> None:
    body = b'{"prompt": "a", "image_size": {"width": 3000, "height": 3000}}'
    assert post(body).status_code == 200
    limited = ErrorBoundary(RequestBody(Inner(), max_pixels=8_999_999))
    assert call(limited, "POST", "/sprint", content=body, headers=JSON).status_code == 422


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json"}, 200),
        ({"content-type": "Application/JSON; charset=utf-8"}, 200),
        ({}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/vnd.bentoml+pickle"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "application/json", "content-encoding": "identity"}, 415),
    ],
)
def test_media_types(headers: dict[str, str], status: int) -> None:
    assert post(b'{"prompt": "a"}', headers).status_code == status


def test_the_size_limit_is_exact_and_comes_first() -> None:
    padding = MAX_BODY_BYTES - len(b'{"prompt": "a"}')
    assert post(b'{"prompt": "a"}' + b" " * padding).status_code == 200
    assert post(b'{"prompt": "a"}' + b" " * (padding + 1), {}).status_code == 413


def test_chunks_count_together() -> None:
    async def chunks() -> Any:
        for _ in range(5):
            yield b" " * (MAX_BODY_BYTES // 4)

    app = ErrorBoundary(RequestBody(Inner(), max_pixels=16_777_216))
    assert call(app, "POST", "/generate", content=chunks(), headers=JSON).status_code == 413


def test_other_routes_keep_their_body() -> None:
    assert post(b"x", {}, "/metrics").json()["body"] == "x"


def test_a_client_that_leaves_while_sending_reaches_nothing() -> None:
    inner = Inner()
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": []}
    asyncio.run(RequestBody(inner, 16_777_216)(scope, receive, send))
    assert inner.requests == []


def test_after_the_body_comes_what_the_connection_gives() -> None:
    seen = []

    async def answer(request: Request) -> Response:
        await request.body()
        seen.append(await request.receive())
        return JSONResponse({})

    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"prompt": "a"}'},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/generate",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    asyncio.run(RequestBody(Inner(answer), 16_777_216)(scope, receive, send))
    assert seen == [{"type": "http.disconnect"}]


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({"x": "y" * 15_000}, "/generate", 200),
        ({"x": "y" * 16_384}, "/generate", 431),
        ({f"x-{i}": "y" * 1000 for i in range(17)}, "/generate", 431),
        ({}, f"/generate?{'q' * 16_384}", 431),
    ],
)
def test_headers_are_bounded(headers: dict[str, str], path: str, status: int) -> None:
    answer = call(ErrorBoundary(HeaderLimit(Inner())), "POST", path, headers=headers)
    assert answer.status_code == status
    if status == 431:
        assert "16384 bytes" in answer.json()["detail"]
