"""The `openai` package from PyPI, unchanged: synchronous, asynchronous and streaming."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from sana_service import metadata
from tests.services import Server


@pytest.fixture
def client(quick_server):
    with openai.OpenAI(base_url=f"{quick_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def picture(content: str | bytes) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(content) if isinstance(content, str) else content))


def made(content: bytes) -> metadata.ImageMetadata:
    told = metadata.read(content)
    assert told is not None
    return told


def test_images_come_in_the_answer_as_with_openais_present_models(client):
    answer = client.images.generate(model="gpt-image-2", prompt="a red circle", size="1024x512", n=2)
    assert [(picture(image.b64_json).size, picture(image.b64_json).format) for image in answer.data] == [
        ((1024, 512), "PNG")
    ] * 2
    assert answer.data[0].url is None
    assert (answer.size, answer.output_format, answer.quality) == ("1024x512", "png", "high")
    assert answer.usage.total_tokens == 0


def test_urls_come_where_they_are_asked_for_or_where_dall_e_was(client):
    for options in ({"response_format": "url", "model": "sana"}, {"model": "dall-e-3", "quality": "hd"}):
        answer = client.images.generate(prompt="a", size="512x512", **options)
        assert answer.data[0].b64_json is None
        assert picture(httpx.get(answer.data[0].url).content).size == (512, 512)


def test_everything_that_is_given_counts(client):
    answer = client.images.generate(
        prompt="a",
        size="512x512",
        output_format="jpeg",
        output_compression=10,
        quality="medium",
        user="customer 7",
        extra_body={"seed": 5, "num_inference_steps": 3, "guidance_scale": 2.5, "negative_prompt": "blue"},
    )
    content = base64.b64decode(answer.data[0].b64_json)
    told = made(content)
    assert (told.seed, told.num_inference_steps, told.guidance_scale, told.negative_prompt, told.model) == (
        5, 3, 2.5, "blue", "base",
    )  # fmt: skip
    assert answer.seed == 5
    sharper = client.images.generate(
        prompt="a", size="512x512", output_format="jpeg", extra_body={"seed": 5, "num_inference_steps": 3}
    )
    assert len(content) < len(base64.b64decode(sharper.data[0].b64_json)) / 2


def test_quality_and_model_choose_the_endpoint(client):
    for options, expected in (
        ({"quality": "low"}, "sprint"),
        ({"model": "sana-sprint"}, "sprint"),
        ({"model": "sana"}, "base"),
        ({"quality": "high"}, "base"),
    ):
        answer = client.images.generate(prompt="a", size="512x512", output_format="jpeg", **options)
        assert made(base64.b64decode(answer.data[0].b64_json)).model == expected


def test_size_auto_is_a_square_of_a_megapixel(client):
    answer = client.images.generate(prompt="a", quality="low", size="auto", background=None)
    assert picture(answer.data[0].b64_json).size == (1024, 1024)


def test_the_asynchronous_client(quick_server):
    async def main() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{quick_server.url}/v1", api_key="none", max_retries=0) as client:
            *answers, models = await asyncio.gather(
                client.images.generate(prompt="a", size="512x512", quality="low"),
                client.images.generate(prompt="b", size="512x512", quality="low"),
                client.models.list(),
            )
            stream = await client.images.generate(
                prompt="a", size="512x512", stream=True, partial_images=1, output_format="jpeg"
            )
            kinds = [event.type async for event in stream]
            sizes = [picture((answer.data or [])[0].b64_json or "").size for answer in answers]
            assert sizes == [(512, 512)] * 2
            assert [model.id for model in models.data] == ["sana", "sana-sprint"]
            return kinds

    assert asyncio.run(main()) == ["image_generation.partial_image", "image_generation.completed"]


def test_a_stream_shows_partial_pictures_and_ends_with_the_whole(client):
    stream = client.images.generate(
        prompt="a", size="1024x512", stream=True, partial_images=3, extra_body={"seed": 9, "num_inference_steps": 8}
    )
    events = list(stream)
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 3 + ["completed"]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]
    assert {picture(event.b64_json).size for event in events[:-1]} == {(512, 256)}
    whole = client.images.generate(prompt="a", size="1024x512", extra_body={"seed": 9, "num_inference_steps": 8})
    assert events[-1].b64_json == whole.data[0].b64_json
    assert (events[-1].size, events[-1].usage.total_tokens) == ("1024x512", 0)


def test_a_stream_without_partial_pictures_is_one_event(client):
    assert [event.type for event in client.images.generate(prompt="a", size="512x512", stream=True)] == [
        "image_generation.completed"
    ]


def test_a_closed_stream_frees_the_device(client, quick_server):
    stream = client.images.generate(
        prompt="a", size="512x512", stream=True, partial_images=1, extra_body={"num_inference_steps": 50}
    )
    next(iter(stream))
    stream.close()
    answer = client.images.generate(prompt="a", size="512x512", quality="low")
    assert picture(answer.data[0].b64_json).size == (512, 512)


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["sana", "sana-sprint"]
    assert client.models.retrieve("sana-sprint").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"model": "flux"}, "model", "model_not_found"),
        ({"n": 5}, "n", "invalid_value"),
        ({"n": 2, "stream": True}, "n", "invalid_value"),
        ({"size": "big"}, "size", "invalid_value"),
        ({"size": "32x32"}, "size", "invalid_value"),
        ({"size": "14142x14142"}, "size", "invalid_value"),
        ({"quality": "max"}, "quality", "invalid_value"),
        ({"quality": "low", "model": "sana"}, "quality", "invalid_value"),
        ({"output_format": "webp"}, "output_format", "invalid_value"),
        ({"output_compression": 50}, "output_compression", "invalid_value"),
        ({"background": "transparent"}, "background", "invalid_value"),
        ({"moderation": "low"}, "moderation", "invalid_value"),
        ({"style": "vivid"}, "style", "unknown_parameter"),
        ({"partial_images": 1}, "partial_images", "invalid_value"),
        ({"partial_images": 4, "stream": True}, "partial_images", "invalid_value"),
        ({"stream": True, "response_format": "url"}, "response_format", "invalid_value"),
        ({"extra_body": {"seed": -1}}, "seed", "invalid_value"),
        ({"extra_body": {"num_inference_steps": 21}, "quality": "low"}, "num_inference_steps", "invalid_value"),
        ({"extra_body": {"negative_prompt": "x"}, "quality": "low"}, "negative_prompt", "invalid_value"),
        ({"extra_body": {"frobnicate": 1}}, "frobnicate", "unknown_parameter"),
    ],
)
def test_what_cannot_be_honoured_is_refused_and_named(client, options, param, code):
    with pytest.raises(openai.APIStatusError) as caught:
        list(client.images.generate(prompt="a", **options))
    assert caught.value.status_code == (404 if code == "model_not_found" else 400)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")
    assert caught.value.response.headers["x-fal-billable-units"] == "0"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/images/generations", 405), ("POST", "/v1/chat/completions", 404), ("POST", "/v1/models", 404)],
)
def test_errors_outside_the_body_have_openais_shape_too(quick_server, method, path, status):
    answer = httpx.request(method, f"{quick_server.url}{path}")
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.status_code == (405 if path == "/v1/models" else status)


def test_bodies_that_are_no_request(quick_server: Server):
    url = f"{quick_server.url}/v1/images/generations"
    for content, media_type, status in (
        (b"{", "application/json", 400),
        (b"{}", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"x" * 300_000, "application/json", 413),
    ):
        answer = httpx.post(url, content=content, headers={"content-type": media_type})
        assert answer.status_code == status
        assert re.fullmatch("invalid_request_error", answer.json()["error"]["type"])


def test_a_wrong_key_is_openais_authentication_error(fal_server):
    with (
        fal_server.client() as http,
        openai.OpenAI(
            base_url=f"{fal_server.server.url}/v1", api_key="wrong", max_retries=0, http_client=http
        ) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.images.generate(prompt="a")
    assert caught.value.code == "invalid_api_key"
