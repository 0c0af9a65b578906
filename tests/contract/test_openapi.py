import json

import pytest
from openapi_spec_validator import validate

from sana_service.contract.openapi import openapi_document

ERRORS = {"400", "401", "404", "405", "413", "415", "422", "429", "500", "503", "504"}


@pytest.mark.parametrize("secured", [False, True])
def test_the_document_is_valid(secured: bool) -> None:
    document = openapi_document(max_pixels=9_000_000, secured=secured)
    validate(document)
    assert json.loads(json.dumps(document)) == document


def test_both_arms_of_image_size_and_its_limit() -> None:
    document = openapi_document(max_pixels=9_000_000, secured=False)
    for model in ("TextToImageInput", "SprintInput"):
        size = document["components"]["schemas"][model]["properties"]["image_size"]
        assert [arm.get("enum", arm.get("$ref")) for arm in size["anyOf"]] == [
            ["square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"],
            "#/components/schemas/ImageSize",
        ]
        assert "9000000" in size["description"]
    sides = document["components"]["schemas"]["ImageSize"]
    assert sides["required"] == ["width", "height"]
    assert (sides["properties"]["width"]["minimum"], sides["properties"]["width"]["maximum"]) == (64, 14142)


def test_each_generation_route_has_every_error_and_its_headers() -> None:
    paths = openapi_document(max_pixels=9_000_000, secured=False)["paths"]
    for route in ("/", "/generate", "/sprint"):
        responses = paths[route]["post"]["responses"]
        assert set(responses) == ERRORS | {"200"}
        for status, response in responses.items():
            expected = {"x-request-id", "Server-Timing", "x-fal-billable-units"}
            if status in {"429", "503"}:
                expected.add("Retry-After")
            if status == "200":
                expected |= {"Idempotent-Replayed", "X-Sana-Precision"}
            assert set(response["headers"]) == expected
        [key] = paths[route]["post"]["parameters"]
        assert (key["in"], key["name"], key.get("required", False)) == ("header", "Idempotency-Key", False)


def test_keys_are_asked_for_only_when_configured() -> None:
    opened = openapi_document(max_pixels=9_000_000, secured=False)
    secured = openapi_document(max_pixels=9_000_000, secured=True)
    assert "securitySchemes" not in opened["components"]
    asked = {
        (path, method)
        for path, methods in secured["paths"].items()
        for method, operation in methods.items()
        if "security" in operation
    }
    assert asked == {
        ("/", "post"), ("/generate", "post"), ("/sprint", "post"),
        ("/metrics", "get"), ("/schema.json", "get"), ("/docs.json", "get"),
    }  # fmt: skip


def test_titles_examples_and_bounds_reach_the_document() -> None:
    schemas = openapi_document(max_pixels=9_000_000, secured=False)["components"]["schemas"]
    properties = schemas["TextToImageInput"]["properties"]
    assert properties["prompt"]["title"] == "Prompt"
    assert properties["prompt"]["example"].startswith("Underwater coral reef")
    assert properties["guidance_scale"] | {"minimum": 0.0, "maximum": 20.0} == properties["guidance_scale"]
    assert properties["seed"] | {"type": "integer", "nullable": True, "maximum": 2**64 - 1} == properties["seed"]
    assert properties["seed"]["default"] is None
    assert properties["image_size"]["default"] == {"width": 3840, "height": 2160}
    assert schemas["TextToImageInput"]["additionalProperties"] is False
    assert schemas["SprintInput"]["properties"]["num_inference_steps"]["maximum"] == 20
    assert schemas["SanaOutput"]["properties"]["images"]["example"][0]["width"] == 3840
