"""A server with an operator's settings: keys, CORS, JSON logs, no metadata, all flagged, a short TTL."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from sana_service.environment import MEMORY
from tests import services
from tests.chaos.processes import worker_of

KEY = {"authorization": "Key team-a"}
QUICK = {"prompt": "a red circle", "image_size": "square", "num_inference_steps": 1, "output_format": "png"}
ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def operator_server(
    tmp_path_factory: pytest.TempPathFactory, pair_variables: dict[str, str]
) -> Iterator[services.Server]:
    folder = tmp_path_factory.mktemp("operator")
    keys = folder / "keys"
    keys.write_text(f"sha256:{hashlib.sha256(b'team-a').hexdigest()}\n")
    variables = {
        **pair_variables,
        "SANA_API_KEYS_FILE": str(keys),
        "SANA_CORS_ORIGINS": ORIGIN,
        "SANA_LOG_FORMAT": "json",
        "SANA_LOG_PROMPTS": "true",
        "SANA_EMBED_METADATA": "false",
        "SANA_NSFW_THRESHOLD": "0.0",
        "SANA_FILE_TTL_SECONDS": "2",
        "SANA_PUBLIC_URL": "https://images.example/sana",
        "SANA_MAX_PIXELS": "9000000",
        "SANA_MAX_CONCURRENT_PER_KEY": "2",
    }
    with services.server(folder, variables) as server:
        yield server


@pytest.fixture(scope="module")
def http(operator_server: services.Server) -> Iterator[httpx.Client]:
    with operator_server.client() as client:
        yield client


def test_every_route_needs_a_key_or_is_public(http: httpx.Client) -> None:
    public = {
        ("get", "/"),
        ("get", "/files/{name}"),
        ("get", "/livez"),
        ("get", "/readyz"),
        ("get", "/openapi.json"),
    }
    for path, operations in http.get("/openapi.json").json()["paths"].items():
        for method in operations:
            answer = http.request(method, path.replace("{name}", "0" * 32 + ".png"))
            if (method, path) in public:
                assert answer.status_code in {200, 404}
            else:
                assert answer.status_code == 401, (method, path)
                assert answer.headers["x-fal-billable-units"] == "0"
            assert http.request(method, path, headers=KEY).status_code != 401


def test_the_order_of_the_checks(http: httpx.Client) -> None:
    assert http.post("/nothing").status_code == 404
    assert http.get("/generate").status_code == 405
    assert http.post("/generate", content=b"x" * 300_000).status_code == 401
    assert http.post("/generate", content=b"x" * 300_000, headers=KEY).status_code == 413
    assert http.post("/generate", content=b"x", headers=KEY).status_code == 415


def test_cors(http: httpx.Client) -> None:
    asked = {"origin": ORIGIN, "access-control-request-method": "POST",
             "access-control-request-headers": "authorization,content-type"}  # fmt: skip
    assert http.options("/generate", headers=asked).headers["access-control-allow-origin"] == ORIGIN
    denied = http.post("/generate", headers={"origin": ORIGIN})
    assert denied.status_code == 401
    assert denied.headers["access-control-allow-origin"] == ORIGIN
    assert "x-fal-billable-units" in denied.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in http.get("/livez", headers={"origin": "https://evil.example"}).headers


def test_flagged_images_are_black_billed_and_expire(http: httpx.Client) -> None:
    answer = http.post("/sprint", json={**QUICK, "num_images": 2}, headers=KEY)
    body = answer.json()
    assert body["has_nsfw_concepts"] == [True, True]
    assert answer.headers["x-fal-billable-units"] == "2"
    for image in body["images"]:
        assert image["url"] == f"https://images.example/sana/files/{image['file_name']}"
        opened = Image.open(io.BytesIO(http.get(f"/files/{image['file_name']}").content))
        assert opened.size == (512, 512)
        assert opened.getextrema() == ((0, 0),) * 3
        # no prompt, no settings: the digital source type alone, which every picture has
        assert set(opened.info) == {"XML:com.adobe.xmp", "xmp"}
    path = f"/files/{body['images'][0]['file_name']}"
    deadline = time.monotonic() + 10
    while http.get(path).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert http.get(path).status_code == 404


def test_the_checker_can_be_turned_off_by_the_client(http: httpx.Client) -> None:
    body = http.post("/sprint", json={**QUICK, "enable_safety_checker": False}, headers=KEY).json()
    assert body["has_nsfw_concepts"] == [False]
    opened = Image.open(io.BytesIO(http.get(f"/files/{body['images'][0]['file_name']}").content))
    assert opened.getextrema() != ((0, 0),) * 3


def test_the_area_limit_is_the_operator_s(http: httpx.Client) -> None:
    body = {**QUICK, "image_size": {"width": 3001, "height": 3000}}
    [entry] = http.post("/sprint", json=body, headers=KEY).json()["detail"]
    assert entry["ctx"]["max_pixels"] == 9_000_000
    assert "9000000" in json.dumps(http.get("/openapi.json").json())


def test_the_log_is_json_with_request_ids(http: httpx.Client, operator_server: services.Server) -> None:
    headers = {**KEY, "x-request-id": "look-for-me"}
    http.post("/sprint", json={**QUICK, "prompt": "a prompt to be logged"}, headers=headers)
    records: list[dict[str, Any]] = [
        json.loads(line) for line in operator_server.log.splitlines() if line.startswith("{")
    ]
    [record] = [record for record in records if "a prompt to be logged" in record["message"]]
    assert (record["request_id"], record["level"]) == ("look-for-me", "info")
    assert "team-a" not in operator_server.log


def test_the_worker_keeps_the_memory_of_pictures_for_the_next(operator_server: services.Server) -> None:
    # glibc reads these when a process begins
    environ = worker_of(operator_server.process.pid).environ()
    assert {name: environ[name] for name in MEMORY} == MEMORY


def test_one_key_has_two_places_and_gets_them_back(http: httpx.Client) -> None:
    """Whoever fills them waits for nobody, and no answer is lost."""
    slow = {**QUICK, "num_inference_steps": 20, "num_images": 4}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: http.post("/sprint", json=slow, headers=KEY), range(4)))
    assert Counter(answer.status_code for answer in answers) == {200: 2, 429: 2}
    for answer in answers:
        if answer.status_code == 429:
            assert "API key" in answer.json()["detail"]
            assert int(answer.headers["retry-after"]) >= 1
    assert http.post("/sprint", json=QUICK, headers=KEY).status_code == 200
