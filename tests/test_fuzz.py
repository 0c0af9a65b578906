"""Everything that reads what a stranger wrote, fed with what nobody would write: an answer or its own error.

`SANA_FUZZ_EXAMPLES` is how many inputs each parser gets; `make fuzz` sets it high.
"""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.datastructures import Headers

from sana_service.contract import openai
from sana_service.contract.errors import InvalidFields, ServiceError
from sana_service.contract.fal import read_wishes
from sana_service.contract.idempotency import read_idempotency_key
from sana_service.contract.schemas import SprintInput, TextToImageInput
from sana_service.http.address import base_url
from sana_service.http.body import MAX_BODY_BYTES, RequestBody
from sana_service.http.boundary import ErrorBoundary
from sana_service.http.routes import allowed_methods, is_public
from sana_service.jobs.guard import check_entry
from sana_service.jobs.worker import parse_payload
from sana_service.metadata import read, read_infotext
from sana_service.settings import SettingsError, load_settings
from sana_service.storage import Storage
from tests.http.stub import Inner, call

EXAMPLES = int(os.environ.get("SANA_FUZZ_EXAMPLES", "60"))
MAX_PIXELS = 16_777_216

fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

texts = st.text(max_size=200) | st.sampled_from(["", "\x00", "\ud800", "٣", "\u202e", "1e400", "-0", "NaN", "../x"])
numbers = st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.none()
values = st.recursive(
    numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from([*TextToImageInput.model_fields, "x"])
objects = st.dictionaries(fields, values, max_size=6)
orders = st.dictionaries(
    st.sampled_from(["prompt", "model", "n", "size", "quality", "stream", "partial_images", "user", "background", "x"]),
    values, max_size=6,
)  # fmt: skip
header_values = st.binary(max_size=60).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"").decode("latin-1"))


def to_json(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@fuzz
@given(content=st.binary(max_size=300) | objects.map(to_json), path=st.sampled_from(["/generate", "/sprint"]))
def test_bodies(content: bytes, path: str) -> None:
    app = ErrorBoundary(RequestBody(Inner(), MAX_PIXELS))
    answer = call(app, "POST", path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code in {200, 400, 422}
    assert len(content) < MAX_BODY_BYTES
    if answer.status_code == 200:
        # what is let through is what the model takes, as JSON
        assert isinstance(json.loads(answer.json()["body"])["prompt"], str)
    else:
        assert {"loc", "msg", "type"} <= set(answer.json()["detail"][0])


@fuzz
@given(data=objects, model=st.sampled_from([SprintInput, TextToImageInput]))
def test_models(data: dict[str, Any], model: type[TextToImageInput] | type[SprintInput]) -> None:
    try:
        request = model.model_validate(data, context={"max_pixels": MAX_PIXELS})
    except ValidationError as error:
        # every fault can be told as JSON, and names where it is
        told = InvalidFields(error).detail
        assert isinstance(told, list)
        assert json.loads(json.dumps(told)) == told
        assert told
        assert all(fault["loc"][0] == "body" for fault in told)
    else:
        assert 1 <= request.num_images <= 4
        assert 1 <= request.num_inference_steps <= 50
        assert 0 <= request.guidance_scale <= 20
        assert request.seed is None or 0 <= request.seed < 2**64


@fuzz
@given(payload=objects)
def test_payloads_of_jobs(payload: dict[str, Any]) -> None:
    with suppress(InvalidFields):
        assert parse_payload("sprint", payload, MAX_PIXELS).num_images <= 4


@fuzz
@given(order=orders)
def test_orders_in_openais_words(order: dict[str, Any]) -> None:
    refused: list[ServiceError] = []
    try:
        openai.read_order(order, MAX_PIXELS)
    except ServiceError as error:
        refused.append(error)
    for one in refused:
        body, _ = openai.error_answer(one)
        assert json.loads(json.dumps(body))["error"]["message"]
        assert openai.answered_status(one) in {400, 404}


@fuzz
@given(
    headers=st.dictionaries(
        st.sampled_from(["x-fal-request-timeout", "x-fal-queue-priority", "x-fal-no-retry", "idempotency-key",
                         "x-fal-object-lifecycle-preference"]),
        header_values | texts.filter(str.isascii), max_size=4,
    )
)  # fmt: skip
def test_headers(headers: dict[str, str]) -> None:
    raw = Headers(raw=[(name.encode(), value.encode("latin-1", "ignore")) for name, value in headers.items()])
    with suppress(ServiceError):
        wishes = read_wishes(raw, 3600)
        assert wishes.start_within_seconds is None or wishes.start_within_seconds > 0
        assert wishes.lifetime_seconds is None or 0 <= wishes.lifetime_seconds <= 3600
    with suppress(ServiceError):
        key = read_idempotency_key(raw.getlist("idempotency-key"), inline=False)
        assert key is None or key in headers.values()


@fuzz
@given(host=header_values)
def test_hosts(host: str) -> None:
    headers = [(b"host", host.encode("latin-1"))]
    scope = {"type": "http", "scheme": "http", "server": ("127.0.0.1", 80), "headers": headers}
    url = base_url(scope)
    assert url.startswith("http://")
    assert not set(url[7:]) & set(" /\\\"'<>?#@\r\n\t")


@fuzz
@given(path=texts | st.from_regex(r"/(files|assets|v1/models|queue/fal-ai/sana/requests)/.*", fullmatch=True),
       method=st.sampled_from(["GET", "POST", "PUT", "BREW"]))  # fmt: skip
def test_paths(path: str, method: str) -> None:
    methods = allowed_methods(path)
    assert set(methods) <= {"GET", "HEAD", "POST", "PUT"}
    if method in methods and is_public(path, method):
        assert path.count("/") <= 2


@fuzz
@given(name=texts | st.from_regex(r"[0-9a-f]{32}\.(jpg|png|webp).?", fullmatch=True))
def test_names_of_files(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    storage = Storage((tmp_path_factory.getbasetemp() / "fuzzed").as_uri(), 60)
    assert storage.open(name) is None
    storage.delete(name)


@fuzz
@given(data=st.binary(max_size=400), start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1"]))
def test_files_of_strangers(data: bytes, start: bytes) -> None:
    for reader in (read, read_infotext):
        with suppress(OSError):
            assert reader(start + data) is None
    assert io.BytesIO(start + data).read(3) == (start + data)[:3]


@fuzz
@given(entry=texts)
def test_hosts_of_webhooks(entry: str) -> None:
    with suppress(ValueError):
        assert check_entry(entry)


@fuzz
@given(value=texts, name=st.sampled_from(["MAX_QUEUE", "DEVICES", "PUBLIC_URL", "CORS_ORIGINS", "APP", "WEBHOOK_HOSTS",
                                          "MAX_QUEUE_WORK", "NSFW_THRESHOLD", "LOG_FORMAT"]))  # fmt: skip
def test_settings(value: str, name: str) -> None:
    line = f"SANA_{name}="
    try:
        load_settings({f"SANA_{name}": value})
    except SettingsError as error:
        line = str(error)
    assert line.startswith(f"SANA_{name}=")
    assert len(line.splitlines()) == 1
