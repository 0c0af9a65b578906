"""The request table of the contract, row by row."""

import math
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_core import from_json

from sana_service.contract.errors import validation_detail
from sana_service.contract.schemas import SprintInput, TextToImageInput
from sana_service.contract.sizes import PRESETS, ImageSize, resolve_size

MAX_PIXELS = 16_777_216


def accept(body: str, model: type[TextToImageInput] | type[SprintInput] = TextToImageInput) -> Any:
    return model.model_validate(from_json(body), context={"max_pixels": MAX_PIXELS})


def faults(body: str, model: type[TextToImageInput] | type[SprintInput] = TextToImageInput) -> list[dict[str, Any]]:
    with pytest.raises(ValidationError) as caught:
        accept(body, model)
    return validation_detail(caught.value)


def field(name: str, value: str) -> str:
    return f'{{"prompt": "a", "{name}": {value}}}'


def test_defaults_of_generate() -> None:
    assert accept('{"prompt": "a"}').model_dump() == {
        "prompt": "a",
        "negative_prompt": "",
        "image_size": {"width": 3840, "height": 2160},
        "num_inference_steps": 18,
        "seed": None,
        "guidance_scale": 5.0,
        "enable_safety_checker": True,
        "num_images": 1,
        "output_format": "jpeg",
        "style_name": "(No style)",
        "sync_mode": False,
    }


def test_sprint_differs_in_its_steps_alone() -> None:
    base, sprint = accept('{"prompt": "a"}').model_dump(), accept('{"prompt": "a"}', SprintInput).model_dump()
    assert {name for name in base if base[name] != sprint[name]} == {"num_inference_steps"}
    assert sprint["num_inference_steps"] == 2


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("square_hd", (1024, 1024)),
        ("square", (512, 512)),
        ("portrait_4_3", (768, 1024)),
        ("portrait_16_9", (576, 1024)),
        ("landscape_4_3", (1024, 768)),
        ("landscape_16_9", (1024, 576)),
    ],
)
def test_presets(name: str, size: tuple[int, int]) -> None:
    resolved = resolve_size(accept(field("image_size", f'"{name}"')).image_size)
    assert (resolved.width, resolved.height) == size
    assert len(PRESETS) == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", '""'),
        ("prompt", '"' + "x" * 10_000 + '"'),
        ("prompt", '"\\u0000 \\ud83d\\ude00 \\n \\u202e"'),
        ("image_size", '{"width": 64, "height": 64}'),
        ("image_size", '{"width": 14142, "height": 1186}'),
        ("image_size", '{"width": 4096, "height": 4096}'),
        ("num_inference_steps", "1"),
        ("num_inference_steps", "50"),
        ("seed", "0"),
        ("seed", "18446744073709551615"),
        ("seed", "null"),
        ("guidance_scale", "0"),
        ("guidance_scale", "20"),
        ("guidance_scale", "0.5"),
        ("enable_safety_checker", "false"),
        ("num_images", "4"),
        ("output_format", '"png"'),
        ("style_name", '"Pixel art"'),
        ("sync_mode", "true"),
    ],
)
def test_accepted_to_the_bound(name: str, value: str) -> None:
    sent = from_json(value)
    taken = getattr(accept(field(name, value)), name)
    assert taken == (ImageSize(**sent) if isinstance(sent, dict) else sent)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("prompt", "null", "string_type"),
        ("prompt", "7", "string_type"),
        ("prompt", '"' + "x" * 10_001 + '"', "string_too_long"),
        ("negative_prompt", '"' + "x" * 10_001 + '"', "string_too_long"),
        ("image_size", '"huge"', "literal_error"),
        ("image_size", "1024", "literal_error"),
        ("image_size", "null", "literal_error"),
        ("image_size", "[1024, 1024]", "literal_error"),
        ("num_inference_steps", "0", "greater_than_equal"),
        ("num_inference_steps", "51", "less_than_equal"),
        ("num_inference_steps", "18.0", "int_type"),
        ("num_inference_steps", '"18"', "int_type"),
        ("num_inference_steps", "true", "int_type"),
        ("seed", "-1", "greater_than_equal"),
        ("seed", "18446744073709551616", "less_than_equal"),
        ("seed", "1.5", "int_type"),
        ("seed", '"7"', "int_type"),
        ("seed", "NaN", "int_type"),
        ("guidance_scale", "-0.1", "greater_than_equal"),
        ("guidance_scale", "20.1", "less_than_equal"),
        ("guidance_scale", "NaN", "finite_number"),
        ("guidance_scale", "Infinity", "finite_number"),
        ("guidance_scale", "1e999", "finite_number"),
        ("guidance_scale", "true", "float_type"),
        ("guidance_scale", '"5"', "float_type"),
        ("enable_safety_checker", "1", "bool_type"),
        ("enable_safety_checker", '"true"', "bool_type"),
        ("num_images", "0", "greater_than_equal"),
        ("num_images", "5", "less_than_equal"),
        ("num_images", "true", "int_type"),
        ("output_format", '"webp"', "literal_error"),
        ("output_format", '"JPEG"', "literal_error"),
        ("style_name", '"cinematic"', "literal_error"),
        ("sync_mode", "0", "bool_type"),
        ("image_sizes", '"square"', "extra_forbidden"),
    ],
)
def test_refused_with_one_entry_that_names_the_field(name: str, value: str, kind: str) -> None:
    [entry] = faults(field(name, value))
    assert (entry["loc"], entry["type"]) == (["body", name], kind)


@pytest.mark.parametrize(
    ("value", "entries"),
    [
        ('{"width": 63, "height": 64}', {("width", "greater_than_equal")}),
        ('{"width": 64, "height": 14143}', {("height", "less_than_equal")}),
        ('{"width": 1024}', {("height", "missing")}),
        ("{}", {("width", "missing"), ("height", "missing")}),
        ('{"width": 1024.0, "height": "1024"}', {("width", "int_type"), ("height", "int_type")}),
        ('{"width": 1024, "height": 1024, "depth": 1}', {("depth", "extra_forbidden")}),
    ],
)
def test_faults_of_an_object_size_name_its_side(value: str, entries: set[tuple[str, str]]) -> None:
    found = faults(field("image_size", value))
    assert {(entry["loc"][2], entry["type"]) for entry in found} == entries
    assert all(entry["loc"][:2] == ["body", "image_size"] for entry in found)
    assert len(found) == len(entries)


def test_too_large_an_area_names_the_bound() -> None:
    [entry] = faults(field("image_size", '{"width": 4097, "height": 4096}'))
    assert entry["loc"] == ["body", "image_size"]
    assert entry["ctx"]["max_pixels"] == MAX_PIXELS


def test_an_input_that_json_cannot_hold_is_given_as_text() -> None:
    entries = faults('{"prompt": "a", "guidance_scale": NaN, "seed": -Infinity}')
    assert {entry["loc"][1]: entry["input"] for entry in entries} == {"guidance_scale": "nan", "seed": "-inf"}
    nested = faults('{"prompt": "a", "image_size": [NaN, {"x": 1e999}]}')
    assert nested[0]["input"] == ["nan", {"x": "inf"}]
    assert math.isnan(from_json("NaN"))


def test_one_entry_for_each_fault() -> None:
    entries = faults('{"seed": -1, "num_images": 9, "x": 1}')
    assert sorted(entry["loc"][1] for entry in entries) == ["num_images", "prompt", "seed", "x"]


def test_sprint_s_own_bound_on_steps() -> None:
    assert accept(field("num_inference_steps", "20"), SprintInput).num_inference_steps == 20
    [entry] = faults(field("num_inference_steps", "21"), SprintInput)
    assert entry["ctx"] == {"le": 20}


def test_of_duplicate_keys_the_last_counts() -> None:
    assert accept('{"prompt": "a", "seed": 1, "prompt": "b", "seed": 2}').seed == 2


def test_titles_and_descriptions_of_the_reference() -> None:
    properties = TextToImageInput.model_json_schema()["properties"]
    assert properties["prompt"]["title"] == "Prompt"
    assert properties["guidance_scale"]["title"] == "Guidance scale (CFG)"
    assert properties["prompt"]["description"] == "The prompt to generate an image from."
    assert properties["prompt"]["examples"][0].startswith("Underwater coral reef ecosystem")
    assert properties["negative_prompt"]["examples"] == [""]
    assert "ignored" in SprintInput.model_json_schema()["properties"]["negative_prompt"]["description"]
