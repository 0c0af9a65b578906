"""OpenAI's images API: its request, mapped to this service's, and its error shape. Pure.

    model, quality --> base or sprint      size --> width and height      n --> num_images

Every field is honoured or refused; `docs/clients.md` has the table. A field that is null counts as
left out, as OpenAI takes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sana_service.contract.errors import InvalidFields, ServiceError
from sana_service.contract.schemas import BaseInput, OutputFormat, Prompt, SprintInput, TextToImageInput

MODELS = {"sana": "base", "sana-sprint": "sprint"}
MAX_PARTIAL_IMAGES = 3
DEFAULT_SIZE = (1024, 1024)

_FOREIGN_MODEL = re.compile(r"(gpt-image-|chatgpt-image-|dall-e-)[a-z0-9.-]*")
_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")
_PREFIXES = {"num_images": "n", "image_size": "size"}

Quality = Literal["auto", "low", "medium", "high", "standard", "hd"]


class BadParameter(ServiceError):
    """A parameter cannot be honoured.

    Args:
        message: what is wrong, and what to do.
        param: its name.
    """

    status = HTTPStatus.BAD_REQUEST

    def __init__(self, message: str, param: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ModelNotFound(BadParameter):
    status = HTTPStatus.NOT_FOUND

    def __init__(self, model: str) -> None:
        shown = model if len(model) <= 64 and model.isprintable() else "of that name"
        super().__init__(
            f"The model {shown} does not exist; there are {', '.join(MODELS)}.", "model", "model_not_found"
        )


class ImagesRequest(BaseModel):
    """The body of `POST /v1/images/generations`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: Prompt
    model: str | None = None
    n: int = Field(default=1, ge=1, le=4)
    size: str = "auto"
    quality: Quality = "auto"
    response_format: Literal["url", "b64_json"] | None = None
    output_format: OutputFormat = "png"
    output_compression: int | None = Field(default=None, ge=0, le=100)
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto"] = "auto"
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=MAX_PARTIAL_IMAGES)
    user: str | None = Field(default=None, max_length=512)
    safety_identifier: str | None = Field(default=None, max_length=512)
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


@dataclass(frozen=True)
class Order:
    """A request of OpenAI's, in this service's terms.

    Args:
        model: which endpoint's transformer draws.
        request: what it is to draw; `sync_mode` where the pictures go into the answer.
        asked: the request as it came.
        jpeg_quality: 1 to 100; None for the service's own.
    """

    model: Literal["base", "sprint"]
    request: BaseInput
    asked: ImagesRequest
    jpeg_quality: int | None

    @property
    def size(self) -> str:
        width, height = _size(self.asked.size)
        return f"{width}x{height}"

    @property
    def inline(self) -> bool:
        return self.request.sync_mode


def read_order(data: dict[str, Any], max_pixels: int) -> Order:
    """A request, understood whole.

    Raises:
        BadParameter: a parameter cannot be honoured.
        InvalidFields: a value is of the wrong type or out of bounds.
    """
    try:
        asked = ImagesRequest.model_validate(data)
    except ValidationError as error:
        raise InvalidFields(error) from error
    model = _model(asked)
    _check_combinations(asked, model)
    inline = asked.stream or _response_format(asked) == "b64_json"
    width, height = _size(asked.size)
    fields: dict[str, Any] = {
        "prompt": asked.prompt,
        "image_size": {"width": width, "height": height},
        "num_images": asked.n,
        "output_format": asked.output_format,
        "sync_mode": inline,
    }
    for name in ("seed", "num_inference_steps", "guidance_scale", "negative_prompt"):
        value = getattr(asked, name)
        if value is not None:
            fields[name] = value
    try:
        request = _INPUTS[model].model_validate(fields, context={"max_pixels": max_pixels})
    except ValidationError as error:
        raise InvalidFields(error) from error
    quality = None if asked.output_compression is None else max(1, asked.output_compression)
    return Order(model, request, asked, quality)


_INPUTS: dict[str, type[BaseInput]] = {"base": TextToImageInput, "sprint": SprintInput}


def _model(asked: ImagesRequest) -> Literal["base", "sprint"]:
    by_quality: Literal["base", "sprint"] = "sprint" if asked.quality == "low" else "base"
    if asked.model is None or _FOREIGN_MODEL.fullmatch(asked.model):
        return by_quality
    if asked.model not in MODELS:
        raise ModelNotFound(asked.model)
    named: Literal["base", "sprint"] = "base" if asked.model == "sana" else "sprint"
    if asked.quality != "auto" and named != by_quality:
        raise BadParameter(f"The model {asked.model} has no quality {asked.quality}; leave one of them out.", "quality")
    return named


def _check_combinations(asked: ImagesRequest, model: str) -> None:
    if asked.output_compression is not None and asked.output_format != "jpeg":
        raise BadParameter("output_compression needs output_format jpeg.", "output_compression")
    if asked.stream and asked.n > 1:
        raise BadParameter("A stream has one image; ask for n 1.", "n")
    if asked.stream and asked.response_format == "url":
        raise BadParameter("A stream carries its images; leave response_format out.", "response_format")
    if asked.partial_images and not asked.stream:
        raise BadParameter("partial_images needs stream true.", "partial_images")
    if asked.negative_prompt and model == "sprint":
        raise BadParameter("A negative prompt has no effect in this quality; use medium or high.", "negative_prompt")


def _response_format(asked: ImagesRequest) -> str:
    """OpenAI's default depends on the model: DALL-E answers URLs, everything later answers the image."""
    if asked.response_format is not None:
        return asked.response_format
    return "url" if asked.model is not None and asked.model.startswith("dall-e-") else "b64_json"


def _size(size: str) -> tuple[int, int]:
    if size == "auto":
        return DEFAULT_SIZE
    match = _SIZE.fullmatch(size)
    if match is None:
        raise BadParameter("size must be auto or WIDTHxHEIGHT, such as 1536x1024.", "size")
    return int(match[1]), int(match[2])


def error_answer(error: ServiceError) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of an error in OpenAI's shape; 400 stands for 422 there, see `answered_status`."""
    message, param, code = _explained(error)
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        kind, code = "requests", "rate_limit_exceeded"
    if error.status == HTTPStatus.UNAUTHORIZED:
        code = "invalid_api_key"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}, error.headers


def answered_status(error: ServiceError) -> int:
    """OpenAI answers 400 where this service's own routes answer 422."""
    return 400 if isinstance(error, InvalidFields) else int(error.status)


def _explained(error: ServiceError) -> tuple[str, str | None, str | None]:
    if isinstance(error, BadParameter):
        return str(error.detail), error.param, error.code
    if isinstance(error.detail, str):
        return error.detail, None, None
    fault = error.detail[0]
    loc = [str(part) for part in fault["loc"][1:]]
    param = ".".join([_PREFIXES.get(loc[0], loc[0])]) if loc else None
    if fault["type"] == "extra_forbidden":
        return f"Unknown parameter: '{param}'.", param, "unknown_parameter"
    if fault["type"] == "missing":
        return f"Missing required parameter: '{param}'.", param, "missing_required_parameter"
    message = fault["msg"] if param is None else f"Invalid value for '{param}': {fault['msg']}."
    return message, param, "invalid_value"
