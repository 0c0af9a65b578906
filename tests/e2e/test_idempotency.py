"""`Idempotency-Key` over HTTP: one picture and one bill, however often the request comes."""

from __future__ import annotations

import re
import uuid
from concurrent.futures import ThreadPoolExecutor

from tests.services import Server

REQUEST = {"prompt": "a red circle", "image_size": "square", "num_inference_steps": 2}


def units_counted(server: Server) -> float:
    """What the service's own counter has."""
    with server.client() as http:
        text = http.get("/metrics").text
    found = re.findall(r"^sana_billable_units_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def test_a_repetition_is_answered_and_not_drawn(quick_server: Server) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    counted, files = units_counted(quick_server), len(list(quick_server.storage.iterdir()))
    with quick_server.client() as http, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: http.post("/generate", json=REQUEST, headers=key), range(4)))
        answers.append(http.post("/", json={**REQUEST, "seed": None}, headers=key))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert {answer.headers["x-fal-billable-units"] for answer in answers} == {"1"}
    assert sorted(answer.headers.get("idempotent-replayed", "first") for answer in answers) == ["first", *["true"] * 4]
    assert units_counted(quick_server) == counted + 1
    assert len(list(quick_server.storage.iterdir())) == files + 1


def test_without_a_key_nothing_is_remembered(quick_server: Server) -> None:
    with quick_server.client() as http:
        names = {http.post("/sprint", json=REQUEST).json()["images"][0]["file_name"] for _ in range(2)}
    assert len(names) == 2


def test_a_key_belongs_to_one_request_and_one_endpoint(quick_server: Server) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    with quick_server.client() as http:
        assert http.post("/sprint", json=REQUEST, headers=key).status_code == 200
        for route, body in (("/sprint", {**REQUEST, "seed": 5}), ("/generate", REQUEST)):
            refused = http.post(route, json=body, headers=key)
            assert refused.status_code == 422
            assert refused.headers["x-fal-billable-units"] == "0"
            [fault] = refused.json()["detail"]
            assert (fault["loc"], fault["type"]) == (["header", "Idempotency-Key"], "idempotency_key_reused")


def test_a_key_that_cannot_be_honoured_is_refused(quick_server: Server) -> None:
    with quick_server.client() as http:
        for body, key in ((REQUEST, "two words"), (REQUEST, "x" * 129), ({**REQUEST, "sync_mode": True}, "good")):
            refused = http.post("/sprint", json=body, headers={"Idempotency-Key": key})
            assert refused.status_code == 400
            assert refused.json()["detail"][0]["loc"] == ["header", "Idempotency-Key"]


def test_a_refusal_frees_the_key(quick_server: Server) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    with quick_server.client() as http:
        assert http.post("/sprint", json={"prompt": 1}, headers=key).status_code == 422
        assert http.post("/sprint", json=REQUEST, headers=key).status_code == 200
