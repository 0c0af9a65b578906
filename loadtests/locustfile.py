"""Locust users of the two endpoints, that look at every answer.

One class for each endpoint, `GenerateUser` and `SprintUser`, with the rows `generate` and `sprint`; a
file fetched is in the row `file`. A user asks, waits for the answer, and asks again (closed loop), so
the number of users is the number of requests in flight. An answer that breaks the contract is a
failure with a short reason, which Locust counts by reason.

Every option is a command line argument and an environment variable, see `locust -f ... --help` or
README.md. Self-contained: it imports nothing of the service that it tests.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from locust import HttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

PRESETS = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
SEED_MODES = ("distinct", "fixed", "server")
_RETRIED = (429, 503)
_LONGEST_WAIT_SECONDS = 10.0
_EXTENSIONS = {"jpeg": "jpg", "png": "png"}

_SUBJECTS = ("lighthouse", "coral reef", "red panda", "steam train", "paper boat", "glass city", "violin")
_PLACES = ("at dawn", "in heavy rain", "under the sea", "on the moon", "by candlelight", "in deep snow")
_MANNERS = ("oil painting", "35mm photo", "watercolour", "isometric render", "woodcut", "pastel sketch")


def _image_size(value: str) -> str:
    """The value itself, if `parse_size` reads it."""
    try:
        parse_size(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return value


def parse_size(value: str) -> tuple[int, int]:
    """Width and height of a preset's name or of "1024x768".

    Raises:
        ValueError: it is neither.
    """
    if value in PRESETS:
        return PRESETS[value]
    match = re.fullmatch(r"([0-9]+)x([0-9]+)", value)
    if match is None:
        raise ValueError(f"{value!r} is neither WIDTHxHEIGHT nor one of {', '.join(PRESETS)}")
    return int(match[1]), int(match[2])


def _at_least_one(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more; to leave a class out, name the other one")
    return int(value)


def _add_options(parser: LocustArgumentParser, **_: Any) -> None:
    def option(name: str, help_text: str, **rest: Any) -> None:
        variable = "SANA_LOAD_" + name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", env_var=variable, help=help_text, **rest)

    option("image-size", "preset or WIDTHxHEIGHT", type=_image_size, default="square_hd")
    option("steps", "denoising steps of generate", type=int, default=18)
    option("sprint-steps", "denoising steps of sprint", type=int, default=2)
    option("guidance", "guidance scale", type=float, default=5.0)
    option("num-images", "images a request", type=int, default=1)
    option("output-format", "file format", choices=list(_EXTENSIONS), default="jpeg")
    option("prompts-file", "text file, a prompt a line, drawn at random; else every prompt differs", default="")
    option(
        "seed-mode",
        "distinct: drawn here for each request; fixed: --seed; server: drawn by the server",
        choices=SEED_MODES,
        default="distinct",
    )
    option("seed", "the seed of --seed-mode fixed", type=int, default=0)
    option("fetch-images", "download each image and check its format, size and length", action="store_true")
    option("answer-timeout", "seconds after which an answer is given up", type=float, default=330.0)
    option("generate-weight", "share of GenerateUser", type=_at_least_one, default=1, include_in_web_ui=False)
    option("sprint-weight", "share of SprintUser", type=_at_least_one, default=1, include_in_web_ui=False)
    # Left out of the web page, so that the key is nowhere to be read there.
    option("api-key", "key of the service; rather set the variable", default="", include_in_web_ui=False)


def _set_weights(environment: Environment, **_: Any) -> None:
    if environment.parsed_options is not None:
        GenerateUser.weight = environment.parsed_options.generate_weight
        SprintUser.weight = environment.parsed_options.sprint_weight


events.init_command_line_parser.add_listener(_add_options)
events.init.add_listener(_set_weights)


@dataclass(frozen=True)
class Expected:
    """What an answer has to say.

    Args:
        prompt: as sent.
        width, height: pixels of each image.
        num_images: how many.
        output_format: "jpeg" or "png".
        seed: the one that was sent, None if the server draws it.
    """

    prompt: str
    width: int
    height: int
    num_images: int
    output_format: str
    seed: int | None

    @property
    def billable_units(self) -> int:
        return -(-self.width * self.height // 2**20) * self.num_images


def answer_faults(status: int, headers: Mapping[str, str], body: Any, expected: Expected) -> Iterator[str]:
    """What is wrong with an answer, each in few words and without what differs by request."""
    if status != 200:
        yield f"status {status}" if status else "no answer"
        return
    units = headers.get("x-fal-billable-units")
    if units != str(expected.billable_units):
        yield f"x-fal-billable-units {units}, not {expected.billable_units}"
    if not isinstance(body, dict):
        yield "no JSON object"
        return
    seed = body.get("seed")
    if type(seed) is not int or (expected.seed is not None and seed != expected.seed):
        yield "seed not given back"
    if body.get("prompt") != expected.prompt:
        yield "prompt not given back"
    flags = body.get("has_nsfw_concepts")
    if not isinstance(flags, list) or [type(flag) for flag in flags] != [bool] * expected.num_images:
        yield "has_nsfw_concepts is not one boolean an image"
    images = body.get("images")
    if not isinstance(images, list) or len(images) != expected.num_images:
        yield f"not {expected.num_images} images"
        return
    for image in images:
        yield from _image_faults(image if isinstance(image, dict) else {}, expected)


def _image_faults(image: dict[str, Any], expected: Expected) -> Iterator[str]:
    width, height = image.get("width"), image.get("height")
    if (width, height) != (expected.width, expected.height):
        yield f"image said to be {width}x{height}, not {expected.width}x{expected.height}"
    if image.get("content_type") != f"image/{expected.output_format}":
        yield f"image said to be {image.get('content_type')}, not image/{expected.output_format}"
    extension = _EXTENSIONS[expected.output_format]
    if not str(image.get("file_name")).endswith(f".{extension}"):
        yield f"file_name does not end in .{extension}"
    if not str(image.get("url")).startswith(("http://", "https://")):
        yield "url is no HTTP URL"


def file_faults(status: int, content: bytes, image: Mapping[str, Any], expected: Expected) -> Iterator[str]:
    """What is wrong with the download of an image that has no `answer_faults`."""
    from PIL import Image

    if status != 200:
        yield f"status {status}" if status else "no answer"
        return
    if len(content) != image.get("file_size"):
        yield "file is not as long as file_size"
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            picture.load()
            width, height = picture.size
            kind = str(picture.format).lower()
    except OSError:
        yield "file is no whole JPEG or PNG"
        return
    if (width, height) != (expected.width, expected.height):
        yield f"file is {width}x{height}, not {expected.width}x{expected.height}"
    if kind != expected.output_format:
        yield f"file is {kind}, not {expected.output_format}"


@cache
def _prompts_of(path: str) -> tuple[str, ...]:
    prompts = tuple(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


def _prompt(path: str) -> str:
    """A line of the file, or one that was never asked for before, so that no cache helps the server."""
    if path:
        return random.choice(_prompts_of(path))
    words = random.choice(_SUBJECTS), random.choice(_PLACES), random.choice(_MANNERS)
    return f"{words[0]} {words[1]}, {words[2]}, number {random.getrandbits(48)}"


class _ImageUser(HttpUser):
    abstract = True
    # Where `bentoml serve` listens by default.
    host = "http://127.0.0.1:3000"
    wait_time = constant(0)
    row: str
    steps_option: str

    @task
    def ask(self) -> None:
        options = self.environment.parsed_options
        width, height = parse_size(options.image_size)
        prompt = _prompt(options.prompts_file)
        seed = {"distinct": random.getrandbits(32), "fixed": options.seed, "server": None}[options.seed_mode]
        preset = options.image_size in PRESETS
        body = {
            "prompt": prompt,
            "image_size": options.image_size if preset else {"width": width, "height": height},
            "num_inference_steps": getattr(options, self.steps_option),
            "guidance_scale": options.guidance,
            "num_images": options.num_images,
            "output_format": options.output_format,
            "seed": seed,
        }
        expected = Expected(prompt, width, height, options.num_images, options.output_format, seed)
        images = self._post(body, expected)
        if options.fetch_images:
            for image in images:
                self._fetch(image, expected)

    def _post(self, body: dict[str, Any], expected: Expected) -> list[dict[str, Any]]:
        """The images of a right answer; none of a wrong one."""
        options = self.environment.parsed_options
        with self.client.post(
            f"/{self.row}",
            name=self.row,
            json=body,
            headers={"Authorization": f"Key {options.api_key}"} if options.api_key else {},
            timeout=options.answer_timeout,
            catch_response=True,
        ) as response:
            headers = response.headers or {}
            fault = next(answer_faults(response.status_code, headers, _json(response), expected), None)
            if fault is None:
                images: list[dict[str, Any]] = response.json()["images"]
                return images
            response.failure(fault)
        # A user who is told to come back later does, instead of asking again at once.
        if response.status_code in _RETRIED:
            wait = headers.get("Retry-After", "")
            time.sleep(min(float(wait), _LONGEST_WAIT_SECONDS) if wait.isdecimal() else 1.0)
        return []

    def _fetch(self, image: dict[str, Any], expected: Expected) -> None:
        """Download an image; without the key, which files do not need and other hosts shall not see."""
        timeout = self.environment.parsed_options.answer_timeout
        with self.client.get(image["url"], name="file", timeout=timeout, catch_response=True) as response:
            content = response.content or b""
            fault = next(file_faults(response.status_code, content, image, expected), None)
            if fault is not None:
                response.failure(fault)


def _json(response: Any) -> Any:
    try:
        return response.json()
    except (TypeError, ValueError):
        # TypeError: a request that got no answer has no content to parse.
        return None


class GenerateUser(_ImageUser):
    """Asks the base pipeline."""

    row = "generate"
    steps_option = "steps"


class SprintUser(_ImageUser):
    """Asks SANA-Sprint."""

    row = "sprint"
    steps_option = "sprint_steps"
