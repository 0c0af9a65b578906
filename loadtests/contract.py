"""What an answer has to say, by the service's HTTP contract; pure Python, no Locust, no service.

`answer_faults` judges the JSON answer, `file_faults` the file it points to. Each fault is in few
words and without what differs by request, so that faults can be counted by their text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Endpoint = Literal["generate", "sprint"]
OutputFormat = Literal["jpeg", "png"]

ENDPOINTS: tuple[Endpoint, ...] = ("generate", "sprint")
DEFAULT_STEPS: dict[Endpoint, int] = {"generate": 18, "sprint": 2}
PRESETS = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
EXTENSIONS = {"jpeg": "jpg", "png": "png"}
REFUSALS = (429, 503)
"""The statuses that ask the client to come back later."""
BILLING_HEADER = "x-fal-billable-units"


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


def size_field(value: str) -> str | dict[str, int]:
    """A size as the request's `image_size` has it."""
    if value in PRESETS:
        return value
    width, height = parse_size(value)
    return {"width": width, "height": height}


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
    """What is wrong with an answer."""
    if status != 200:
        yield f"status {status}" if status else "no answer"
        return
    units = headers.get(BILLING_HEADER)
    if units != str(expected.billable_units):
        yield f"{BILLING_HEADER} {units}, not {expected.billable_units}"
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
    extension = EXTENSIONS[expected.output_format]
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
