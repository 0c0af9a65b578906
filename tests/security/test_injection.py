"""Nothing from a client reaches a header, a path or the shape of a log."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest

from tests.services import Server

MARK = "INJECTED"
QUICK = {"image_size": "square", "num_inference_steps": 1}
NASTY = [
    f"\r\nx-injected: 1\r\n\r\n{MARK}",
    f"\n{MARK} [INFO] all is well",
    f"%s%s%n%x {{0.__class__}} {{request_id}} ${{HOME}} {MARK}",
    f"$(touch /tmp/{MARK}) `touch {MARK}`; touch {MARK} | {MARK}",
    f"../../{MARK}/../../etc/passwd\x00.png",
    f"\x1b[2J\x1b]0;{MARK}\x07",
    f"<script>alert('{MARK}')</script>",
]


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_texts_go_into_the_picture_and_nowhere_else(quick_server: Server, field: str, text: str) -> None:
    with quick_server.client() as http:
        before = quick_server.log
        answer = http.post("/sprint", json={"prompt": "a", field: text, **QUICK})
        refused = http.post("/sprint", json={"prompt": "a", field: text, "seed": text, **QUICK})
        assert (answer.status_code, refused.status_code) == (200, 422)
        for one in (answer, refused):
            assert MARK not in str(one.headers)
            assert "x-injected" not in one.headers
        [name] = [image["file_name"] for image in answer.json()["images"]]
        assert [path.name for path in quick_server.storage.iterdir() if path.name == name] == [name]
        assert MARK not in "".join(path.name for path in quick_server.storage.iterdir())
        assert MARK not in quick_server.log[len(before) :]


@pytest.mark.parametrize(
    "path",
    [f"/files/%0a{MARK}", f"/files/%1b[2J{MARK}", f"/v1/models/%0d%0a{MARK}", f"/%0a{MARK}", f"/livez%0a{MARK}",
     f"/queue/fal-ai/sana/requests/%0a{MARK}", f"/files/..%2f..%2f{MARK}", f"/livez?{MARK}%0a{MARK}"],
)  # fmt: skip
def test_paths_write_no_lines_into_the_log(quick_server: Server, path: str) -> None:
    with quick_server.client() as http:
        before = quick_server.log
        answer = http.get(path)
        assert answer.status_code in {200, 401, 404}
        assert MARK not in str(answer.headers)
        lines = quick_server.log[len(before) :].splitlines()
        assert [line for line in lines if line.lstrip().startswith((MARK, "\x1b"))] == []


def test_headers_come_back_only_where_they_are_well_formed(quick_server: Server) -> None:
    nasty: dict[str, Any] = {
        "x-request-id": f"a b {MARK}",
        "host": f"evil.example/{MARK}?",
        "x-forwarded-host": MARK,
        "x-forwarded-proto": MARK,
        "forwarded": f"host={MARK}",
        "origin": f"https://{MARK}",
        "user-agent": f"\x1b[2J{MARK}",
        "traceparent": f"00-{MARK}",
    }
    with quick_server.client() as http:
        before = quick_server.log
        answer = http.post("/sprint", json={"prompt": "a", **QUICK}, headers=nasty)
        assert answer.status_code == 200
        assert MARK not in str(answer.headers) + answer.text
        assert MARK not in quick_server.log[len(before) :]


@pytest.mark.parametrize(
    "head",
    [
        f"GET /livez HTTP/1.1\r\nHost: a\r\nx-request-id: ok\x0bx-injected: {MARK}\r\n\r\n",
        f"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\nx-request-id: a\r\n {MARK}\r\n\r\n",
        f"GET /livez\r\n{MARK}: HTTP/1.1\r\n\r\n",
        "POST /sprint HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        f"{MARK}\r\n\r\n",
    ],
)
def test_heads_that_are_two_things_at_once_are_refused_or_read_as_one(quick_server: Server, head: str) -> None:
    """Folded headers, smuggled requests: one answer, then the end, and no second request."""
    host, port = quick_server.url.removeprefix("http://").split(":")
    before = quick_server.log
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(head.encode("latin-1"))
        received = b""
        while chunk := client.recv(65536):
            received += chunk
    assert received.count(b"HTTP/1.1 ") == 1 or received.count(b"HTTP/1.1 4") == 2
    assert MARK.encode() not in received
    assert MARK not in quick_server.log[len(before) :]


def test_no_request_leaves_on_a_clients_word(quick_server: Server) -> None:
    """No field takes an address, and webhooks go to hosts that the operator named."""
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0.5)
        address = f"http://127.0.0.1:{bait.getsockname()[1]}/"
        with quick_server.client() as http:
            for field in ("image_url", "webhook", "url", "callback"):
                assert http.post("/sprint", json={"prompt": address, field: address, **QUICK}).status_code == 422
            assert http.post("/sprint", json={"prompt": address, **QUICK}).status_code == 200
            hooked = http.post(f"/queue/fal-ai/sana?fal_webhook={address}", json={"prompt": "a", **QUICK})
            assert 400 <= hooked.status_code < 500
        with pytest.raises(TimeoutError):
            bait.accept()


def test_schemes_that_read_files_are_no_prompts_of_ours(quick_server: Server) -> None:
    with quick_server.client() as http:
        answer: httpx.Response = http.post(
            "/sprint", json={"prompt": "file:///etc/passwd", "image_size": "file:///etc"}
        )
        assert answer.status_code == 422
        assert "root:" not in answer.text
