"""The contract's tables over HTTP, on a server with a one-layer random pair."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.services import Server

QUICK = {
    "prompt": "a red circle",
    "image_size": "square",
    "num_inference_steps": 2,
    "seed": 7,
    "guidance_scale": 1.5,
}


@pytest.fixture(scope="module")
def http(quick_server: Server) -> Any:
    with quick_server.client() as client:
        yield client


def picture(http: httpx.Client, answer: httpx.Response, index: int = 0) -> Image.Image:
    assert answer.status_code == 200, answer.text
    file = http.get(answer.json()["images"][index]["url"])
    assert file.status_code == 200
    opened = Image.open(io.BytesIO(file.content))
    opened.load()
    return opened


@pytest.mark.parametrize("route", ["/generate", "/", "/sprint"])
def test_a_request_by_its_defaults_but_the_size(http: httpx.Client, route: str) -> None:
    answer = http.post(route, json={"prompt": "a red circle", "image_size": "square"})
    body = answer.json()
    assert set(body) == {"images", "seed", "has_nsfw_concepts", "prompt", "timings"}
    [image] = body["images"]
    assert set(image) == {"url", "content_type", "file_name", "file_size", "width", "height"}
    assert (image["width"], image["height"], image["content_type"]) == (512, 512, "image/jpeg")
    assert re.fullmatch(r"[0-9a-f]{32}\.jpg", image["file_name"])
    assert 0 <= body["seed"] < 2**32
    assert body["prompt"] == "a red circle"
    assert len(body["has_nsfw_concepts"]) == 1
    assert set(body["timings"]) >= {"queue", "text", "denoise", "decode", "encode"}
    assert picture(http, answer).size == (512, 512)


def test_the_files_route(http: httpx.Client) -> None:
    image = http.post("/sprint", json=QUICK).json()["images"][0]
    file = http.get(f"/files/{image['file_name']}")
    assert file.headers["content-type"] == "image/jpeg"
    assert int(file.headers["content-length"]) == image["file_size"] == len(file.content)
    assert "max-age" in file.headers["cache-control"]
    assert file.headers["x-content-type-options"] == "nosniff"
    again = http.get(f"/files/{image['file_name']}", headers={"if-none-match": file.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert http.head(f"/files/{image['file_name']}").headers["content-length"] == str(image["file_size"])
    for name in ("0" * 32 + ".jpg", "%2e%2e", "a.jpg", image["file_name"] + ".tmp"):
        assert http.get(f"/files/{name}").status_code == 404


@pytest.mark.parametrize(
    ("size", "expected", "units"),
    [
        ("square_hd", (1024, 1024), 1),
        ("landscape_16_9", (1024, 576), 1),
        ({"width": 1280, "height": 960}, (1280, 960), 2),  # 1280x1 in stock diffusers
        ({"width": 64, "height": 64}, (64, 64), 1),
        ({"width": 2000, "height": 65}, (2000, 65), 1),
        ({"width": 3840, "height": 2160}, (3840, 2160), 8),
    ],
)
def test_sizes_are_exact_and_billed_as_asked(
    http: httpx.Client, size: Any, expected: tuple[int, int], units: int
) -> None:
    answer = http.post("/sprint", json={**QUICK, "image_size": size})
    assert picture(http, answer).size == expected
    assert (answer.json()["images"][0]["width"], answer.json()["images"][0]["height"]) == expected
    assert answer.headers["x-fal-billable-units"] == str(units)


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_sprint_works_at_every_number_of_steps(http: httpx.Client, steps: int) -> None:
    assert http.post("/sprint", json={**QUICK, "num_inference_steps": steps}).status_code == 200


@pytest.mark.parametrize("route", ["/generate", "/sprint"])
def test_the_same_request_gives_the_same_bytes(http: httpx.Client, route: str) -> None:
    body = {**QUICK, "output_format": "png"}
    contents = {http.get(http.post(route, json=body).json()["images"][0]["url"]).content for _ in range(2)}
    assert len(contents) == 1
    other = http.get(http.post(route, json={**body, "seed": 8}).json()["images"][0]["url"]).content
    assert other not in contents


@pytest.mark.parametrize("seed", [0, 2**53 + 1, 2**64 - 2])
def test_image_i_is_the_image_of_seed_plus_i(http: httpx.Client, seed: int) -> None:
    body = {**QUICK, "seed": seed, "output_format": "png"}
    several = http.post("/sprint", json={**body, "num_images": 3})
    assert several.json()["seed"] == seed
    for index in range(3):
        alone = http.post("/sprint", json={**body, "seed": (seed + index) % 2**64})
        assert pixels(picture(http, several, index)) == pixels(picture(http, alone))


def pixels(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def test_formats_and_metadata(http: httpx.Client) -> None:
    jpeg = picture(http, http.post("/sprint", json=QUICK))
    png = picture(http, http.post("/sprint", json={**QUICK, "output_format": "png"}))
    assert (jpeg.format, png.format) == ("JPEG", "PNG")
    assert isinstance(png, Image.Image)
    assert "Seed: 7" in png.info["parameters"]
    assert png.info["parameters"].startswith("a red circle")


def test_sync_mode_answers_a_data_uri_and_stores_nothing(http: httpx.Client, quick_server: Server) -> None:
    before = sorted(quick_server.storage.iterdir())
    [image] = http.post("/sprint", json={**QUICK, "sync_mode": True}).json()["images"]
    kind, _, data = image["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    content = base64.b64decode(data, validate=True)
    assert len(content) == image["file_size"]
    assert Image.open(io.BytesIO(content)).size == (512, 512)
    assert sorted(quick_server.storage.iterdir()) == before


def test_a_style_changes_the_picture_and_not_the_prompt(http: httpx.Client) -> None:
    plain = http.post("/sprint", json={**QUICK, "output_format": "png"})
    styled = http.post("/sprint", json={**QUICK, "output_format": "png", "style_name": "Anime"})
    assert styled.json()["prompt"] == "a red circle"
    assert pixels(picture(http, plain)) != pixels(picture(http, styled))


def test_without_the_checker_nothing_is_flagged(http: httpx.Client) -> None:
    answer = http.post("/sprint", json={**QUICK, "enable_safety_checker": False, "num_images": 2})
    assert answer.json()["has_nsfw_concepts"] == [False, False]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "  \t ",
        "nul \x00 inside",
        "controls \x01\x1b[31m and a bell \x07",
        "right to left \u202e\u05e9\u05dc\u05d5\u05dd",
        "a family \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "x-fal-billable-units: 0\r\nset-cookie: a=b",
        "{prompt} %s ${HOME} $(id) '; drop table images; --",
        "word " * 2000,
    ],
)
def test_any_text_is_a_prompt(http: httpx.Client, prompt: str) -> None:
    for output_format in ("jpeg", "png"):
        answer = http.post("/sprint", json={**QUICK, "prompt": prompt, "output_format": output_format})
        assert picture(http, answer).size == (512, 512)
        assert answer.json()["prompt"] == prompt
        assert "set-cookie" not in answer.headers


def test_headers_of_a_success(http: httpx.Client) -> None:
    answer = http.post("/sprint", json={**QUICK, "num_images": 2}, headers={"x-request-id": "my-id.1"})
    assert answer.headers["x-request-id"] == "my-id.1"
    assert answer.headers["x-fal-billable-units"] == "2"
    stages = re.findall(r"([a-z]+);dur=([0-9.]+)", answer.headers["server-timing"])
    assert {"queue", "text", "denoise", "decode", "safety", "encode", "store", "total"} <= {s for s, _ in stages}
    timings = answer.json()["timings"]
    assert float(dict(stages)["denoise"]) == pytest.approx(timings["denoise"] * 1000, abs=0.06)


JSON = {"content-type": "application/json"}
VALID = b'{"prompt": "a", "image_size": "square", "num_inference_steps": 1}'


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("POST", "/nothing", VALID, {}, 404),
        ("POST", "/generate/", VALID, JSON, 404),
        ("GET", "/sprint", b"", {}, 405),
        ("POST", "/generate", b" " * 300_000, {}, 413),
        ("POST", "/generate", VALID, {}, 415),
        ("POST", "/generate", VALID, {"content-type": "text/plain"}, 415),
        ("POST", "/generate", VALID, {"content-type": "application/vnd.bentoml+pickle"}, 415),
        ("POST", "/generate", VALID, {**JSON, "content-encoding": "gzip"}, 415),
        ("POST", "/", b"", JSON, 400),
        ("POST", "/sprint", b"[]", JSON, 400),
        ("POST", "/sprint", b'{"prompt": "\\udfff"}', JSON, 400),
        ("POST", "/sprint", b'{"seed": 1}', JSON, 422),
        ("POST", "/generate", b'{"prompt": "a", "guidance_scale": NaN}', JSON, 422),
        ("POST", "/", b'{"prompt": "a", "image_size": {"width": 14142, "height": 14142}}', JSON, 422),
    ],
)
def test_errors(
    http: httpx.Client, method: str, path: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = http.request(method, path, content=content, headers=headers)
    assert answer.status_code == status
    assert set(answer.json()) == {"detail"}
    assert isinstance(answer.json()["detail"], list if status in {400, 422} else str)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-fal-billable-units"] == "0"
    assert answer.headers["x-request-id"]


def test_forwarded_headers_and_strange_hosts_are_not_believed(http: httpx.Client) -> None:
    forwarded = {
        "x-forwarded-proto": "https",
        "x-forwarded-host": "evil.example",
        "x-forwarded-for": "1.2.3.4",
    }
    url = http.post("/sprint", json=QUICK, headers=forwarded).json()["images"][0]["url"]
    assert url.startswith(str(http.base_url).rstrip("/") + "/files/")
    url = http.post("/sprint", json=QUICK, headers={"host": "images.example:81"}).json()["images"][0]["url"]
    assert url.startswith("http://images.example:81/files/")
    url = http.post("/sprint", json=QUICK, headers={"host": "[::1"}).json()["images"][0]["url"]
    assert url.startswith(str(http.base_url).rstrip("/") + "/files/")


def test_operations_routes(http: httpx.Client) -> None:
    assert http.get("/livez").status_code == 200
    assert http.get("/readyz").status_code == 200
    assert "bentoml_service_request_total" in http.get("/metrics").text
    assert http.get("/").headers["content-type"].startswith("text/html")
    assert http.get("/openapi.json").json() == http.get("/docs.json").json()
    assert {route["name"] for route in http.get("/schema.json").json()["routes"]} == {"generate", "sprint"}


def test_no_prompt_reaches_the_log(http: httpx.Client, quick_server: Server) -> None:
    secret = "a-very-private-prompt"
    http.post("/sprint", json={**QUICK, "prompt": secret})
    http.post("/sprint", json={**QUICK, "prompt": secret, "seed": secret})
    http.post("/sprint", content=secret.encode(), headers=JSON)
    assert secret not in quick_server.log


@pytest.mark.timing
def test_probes_answer_while_the_device_works(http: httpx.Client, quick_server: Server) -> None:
    heavy = {"prompt": "a", "image_size": "square_hd", "num_inference_steps": 50, "num_images": 4}
    with ThreadPoolExecutor(1) as pool, quick_server.client() as other:
        running = pool.submit(other.post, "/generate", json=heavy)
        waits = []
        while not running.done():
            started = time.perf_counter()
            assert http.get("/livez").status_code == 200
            waits.append(time.perf_counter() - started)
        assert running.result().status_code == 200
    # a blocked event loop would answer once, after the whole request
    assert len(waits) > 10
    assert statistics.median(waits) < 0.15
