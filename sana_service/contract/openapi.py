"""The OpenAPI 3.0 document of the service, complete: every route, field, header and error.

Written by hand around pydantic's own schemas, because BentoML's generator keeps one arm of a union
and knows no response headers. It is 3.0 because there an integer is a number without a fraction, as
the service takes it; to 3.1 the number 18.0 is an integer. Pure: the same version and limits give
the same document.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from sana_service import __version__
from sana_service.contract.billing import BILLING_HEADER
from sana_service.contract.idempotency import KEY_PATTERN
from sana_service.contract.schemas import SanaOutput, SanaSprintOutput, SprintInput, TextToImageInput

FILE_NAME_PATTERN = r"^[0-9a-f]{32}\.(jpg|png)$"

_REF = "#/components/schemas/{model}"
_JSON = "application/json"

_ERRORS = {
    HTTPStatus.BAD_REQUEST: "The body is empty, not JSON, or no object.",
    HTTPStatus.UNAUTHORIZED: "Keys are configured, and none or a wrong one came.",
    HTTPStatus.NOT_FOUND: "No such route or file.",
    HTTPStatus.METHOD_NOT_ALLOWED: "The route has other methods.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than 256 KiB.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The media type is not application/json, or the body is encoded.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A field is missing, unknown, of the wrong type or out of bounds.",
    HTTPStatus.TOO_MANY_REQUESTS: "The queue is full, or the deadline cannot be met.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Anything else; the trace is in the log with the request id.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Not ready, draining, storage failing, or out of device memory.",
    HTTPStatus.GATEWAY_TIMEOUT: "The request's deadline passed.",
}
_LISTED = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
_RETRIED = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
_POST_ERRORS = tuple(_ERRORS)
_GET_ERRORS = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.INTERNAL_SERVER_ERROR,
)

_PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "An error as a sentence.",
    "required": ["detail"],
    "properties": {"detail": {"type": "string"}},
}
_FIELD_PROBLEMS = {
    "type": "object",
    "title": "FieldProblems",
    "description": "One entry for each fault in the body, or in the Idempotency-Key.",
    "required": ["detail"],
    "properties": {
        "detail": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["loc", "msg", "type"],
                "properties": {
                    "loc": {
                        "type": "array",
                        "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                        "example": ["body", "image_size", "width"],
                    },
                    "msg": {"type": "string"},
                    "type": {"type": "string", "example": "greater_than_equal"},
                    "input": {"description": "The value that was sent."},
                    "ctx": {"type": "object", "description": "The bounds that were crossed."},
                },
            },
        }
    },
}


def _header(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "required": True, "schema": schema}


_REQUEST_ID = _header(
    "The client's `x-request-id` when it is well-formed, else one made here.",
    {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
)
_BILLABLE_UNITS = _header(
    "ceil(width * height / 2**20) * num_images for the size asked for; 0 on errors.",
    {"type": "string", "pattern": "^[0-9]+$"},
)
_SERVER_TIMING = _header("Milliseconds spent in each stage.", {"type": "string"})
_RETRY_AFTER = _header("Seconds to wait before the next try.", {"type": "string", "pattern": "^[0-9]+$"})


_REPLAYED = _header(
    "The request's key was answered before: this is that answer, drawn and billed then.",
    {"type": "string", "enum": ["true"]},
) | {"required": False}
_PRECISION = _header(
    "The images are not as exact as the checkpoint: its matrix products were computed like this (`SANA_PRECISION`).",
    {"type": "string", "enum": ["fp8"]},
) | {"required": False}
_IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Requests with one key are one request: drawn and billed once, answered each time. A key belongs to "
    "its API key and is kept as long as the images. Not with `sync_mode`.",
    "schema": {"type": "string", "pattern": f"^{KEY_PATTERN}$"},
}


def _common_headers() -> dict[str, Any]:
    return {"x-request-id": _REQUEST_ID, "Server-Timing": _SERVER_TIMING}


def _error(status: HTTPStatus) -> dict[str, Any]:
    headers = _common_headers() | {BILLING_HEADER: _BILLABLE_UNITS}
    if status in _RETRIED:
        headers["Retry-After"] = _RETRY_AFTER
    model = "FieldProblems" if status in _LISTED else "Problem"
    return {
        "description": _ERRORS[status],
        "headers": headers,
        "content": {_JSON: {"schema": {"$ref": _REF.format(model=model)}}},
    }


def _errors(statuses: tuple[HTTPStatus, ...]) -> dict[str, Any]:
    return {str(status.value): _error(status) for status in statuses}


def _generation(
    operation_id: str, summary: str, description: str, models: tuple[str, str], secured: bool
) -> dict[str, Any]:
    request, response = models
    operation: dict[str, Any] = {
        "operationId": operation_id,
        "summary": summary,
        "description": description,
        "tags": ["generation"],
        "parameters": [_IDEMPOTENCY_KEY],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": {"$ref": _REF.format(model=request)}}},
        },
        "responses": {
            "200": {
                "description": "The images, their seed and what the safety model said.",
                "headers": {
                    **_common_headers(),
                    BILLING_HEADER: _BILLABLE_UNITS,
                    "Idempotent-Replayed": _REPLAYED,
                    "X-Sana-Precision": _PRECISION,
                },
                "content": {_JSON: {"schema": {"$ref": _REF.format(model=response)}}},
            },
            **_errors(_POST_ERRORS),
        },
    }
    return _with_security(operation, secured)


def _get(
    operation_id: str,
    summary: str,
    content: dict[str, Any],
    *,
    errors: tuple[HTTPStatus, ...] = (),
    parameters: list[dict[str, Any]] | None = None,
    secured: bool = False,
    tag: str = "operations",
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": operation_id,
        "summary": summary,
        "tags": [tag],
        "responses": {
            "200": {"description": summary, "headers": _common_headers(), "content": content},
            **_errors(tuple(dict.fromkeys((*errors, *_GET_ERRORS)))),
        },
    }
    if parameters:
        operation["parameters"] = parameters
    return _with_security(operation, secured)


def _with_security(operation: dict[str, Any], secured: bool) -> dict[str, Any]:
    return operation | {"security": [{"apiKey": []}, {"bearer": []}]} if secured else operation


def _paths(secured: bool) -> dict[str, Any]:
    base = ("TextToImageInput", "SanaOutput")
    generate = "Text to image with Sana: 18 steps, classifier-free guidance."
    text = {"text/plain": {"schema": {"type": "string"}}}
    document = {_JSON: {"schema": {"type": "object"}}}
    image = {"schema": {"type": "string", "format": "binary"}}
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "The `file_name` of an image.",
        "schema": {"type": "string", "pattern": FILE_NAME_PATTERN},
    }
    unavailable = (HTTPStatus.SERVICE_UNAVAILABLE,)
    return {
        "/generate": {"post": _generation("generate", "Generate images", generate, base, secured)},
        "/": {
            "post": _generation("generateAtRoot", "Generate images, at the reference's route", generate, base, secured),
            "get": _get("page", "The page", {"text/html": {"schema": {"type": "string"}}}),
        },
        "/sprint": {
            "post": _generation(
                "sprint",
                "Generate images in two steps",
                "Text to image with SANA-Sprint: 2 steps, embedded guidance.",
                ("SprintInput", "SanaSprintOutput"),
                secured,
            )
        },
        "/files/{name}": {
            "get": _get(
                "getFile",
                "A generated image",
                {"image/jpeg": image, "image/png": image},
                errors=(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
                parameters=[name],
                tag="generation",
            )
        },
        "/livez": {"get": _get("livez", "Whether the process can still recover", text, errors=unavailable)},
        "/readyz": {"get": _get("readyz", "Whether requests are served", text, errors=unavailable)},
        "/metrics": {"get": _get("metrics", "Prometheus metrics", text, secured=secured)},
        "/openapi.json": {"get": _get("openapi", "This document", document)},
        "/docs.json": {"get": _get("docs", "This document, where BentoML has it", document, secured=secured)},
        "/schema.json": {"get": _get("schema", "The schema that BentoML's clients read", document, secured=secured)},
    }


def openapi_document(*, max_pixels: int, secured: bool) -> dict[str, Any]:
    """The document as a JSON-ready dict.

    Args:
        max_pixels: the area limit in force, in pixels.
        secured: whether API keys are configured.
    """
    models: list[tuple[type[Any], JsonSchemaMode]] = [
        (TextToImageInput, "validation"),
        (SprintInput, "validation"),
        (SanaOutput, "serialization"),
        (SanaSprintOutput, "serialization"),
    ]
    _, definitions = models_json_schema(models, ref_template=_REF)
    schemas: dict[str, Any] = {
        **{name: _as_3_0(schema) for name, schema in definitions["$defs"].items()},
        "Problem": _PROBLEM,
        "FieldProblems": _FIELD_PROBLEMS,
    }
    for name in ("TextToImageInput", "SprintInput"):
        size = schemas[name]["properties"]["image_size"]
        size["description"] += (
            f" A preset's name, or width and height in pixels; width times height is at most {max_pixels}."
        )
    document: dict[str, Any] = {
        "openapi": "3.0.3",
        "info": {
            "title": "Sana",
            "version": __version__,
            "description": "Text to image with NVIDIA's Sana and SANA-Sprint.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "tags": [
            {"name": "generation", "description": "Images from text."},
            {"name": "operations", "description": "Health, metrics and descriptions of the service."},
        ],
        "paths": _paths(secured),
        "components": {"schemas": schemas},
    }
    if secured:
        document["components"]["securitySchemes"] = {
            "apiKey": {
                "type": "apiKey",
                "in": "header",
                "name": "Authorization",
                "description": "`Key <api key>`, as fal's clients send it.",
            },
            "bearer": {"type": "http", "scheme": "bearer"},
        }
    return document


def _as_3_0(schema: Any) -> Any:
    """A schema of pydantic's in OpenAPI 3.0's words: `nullable`, and one `example` instead of a list."""
    if isinstance(schema, list):
        return [_as_3_0(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {name: _as_3_0(value) for name, value in schema.items() if name not in {"examples", "default"}}
    if "default" in schema:
        converted["default"] = schema["default"]
    if isinstance(schema.get("examples"), list):
        converted["example"] = schema["examples"][0]
    arms = converted.get("anyOf", [])
    if {"type": "null"} in arms:
        [arm] = [arm for arm in arms if arm != {"type": "null"}]
        del converted["anyOf"]
        converted |= {**arm, "nullable": True}
    return converted
