"""The facts that travel in a picture file, read by tools other than the writer."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import zlib
from operator import mul
from pathlib import Path

import numpy as np
import piexif  # type: ignore[import-untyped]
import piexif.helper  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sana_service.images import OutputFormat, encode
from sana_service.metadata import ImageMetadata, a1111_parameters, read, read_infotext

CORAL = ImageMetadata(
    prompt="Underwater coral reef ecosystem",
    negative_prompt="",
    model="base",
    model_name="Sana_1600M",
    num_inference_steps=18,
    guidance_scale=5.0,
    seed=0,
    width=3840,
    height=2160,
    sampler="DPM++ 2M",
    version="1.2.3",
)
PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
TRICKY = {
    "empty": "",
    "nul": "a\0b",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "emoji family": "👩‍👩‍👧‍👦 in the rain",
    "right to left": "\u202eמערכת שונית אלמוגים תת-ימית العربية\u202c",
    "lines": "first\nsecond\r\nthird\u2028fourth",
    "injection": "a cat\nNegative prompt: dogs\nSteps: 1, Sampler: Euler, CFG scale: 1, Seed: 1, Size: 1x1",
    "quotes": 'she said "hi", \\ and: left',
    "blanks": "  \t kept  ",
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "longest": "🪸" * 10_000,
}


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Every chunk of a PNG, its checksum verified."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        chunks.append((kind, body))
        at += 12 + length
    assert chunks[-1] == (b"IEND", b"")
    return chunks


def _png_texts(data: bytes) -> dict[str, str]:
    """The uncompressed iTXt chunks of a PNG by keyword."""
    texts = {}
    for kind, body in _png_chunks(data):
        if kind == b"iTXt":
            keyword, rest = body.split(b"\0", 1)
            assert rest[:4] == b"\0\0\0\0"  # not compressed, no language, no translated keyword
            texts[keyword.decode()] = rest[4:].decode()
    return texts


def _jpeg_segments(data: bytes) -> dict[int, list[bytes]]:
    """The segments before the scan by marker."""
    assert data[:2] == b"\xff\xd8"
    assert data[-2:] == b"\xff\xd9"
    segments: dict[int, list[bytes]] = {}
    at = 2
    while data[at + 1] != 0xDA:
        assert data[at] == 0xFF
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        segments.setdefault(data[at + 1], []).append(data[at + 4 : at + 2 + length])
        at += 2 + length
    return segments


def _exif_infotext(data: bytes) -> str:
    """UserComment as A1111 reads it: with piexif."""
    (app1,) = (segment for segment in _jpeg_segments(data)[0xE1] if segment.startswith(b"Exif"))
    comment = piexif.load(app1)["Exif"][piexif.ExifIFD.UserComment]
    text = piexif.helper.UserComment.load(comment)
    assert isinstance(text, str)
    return text


def test_infotext_without_a_negative_prompt() -> None:
    assert a1111_parameters(CORAL) == (
        "Underwater coral reef ecosystem\n"
        "Steps: 18, Sampler: DPM++ 2M, CFG scale: 5, Seed: 0, Size: 3840x2160, Model: Sana_1600M, "
        "Version: sana-service 1.2.3"
    )


def test_infotext_with_everything() -> None:
    metadata = dataclasses.replace(
        CORAL,
        prompt="a cat\non a mat",
        negative_prompt="blurry, low quality",
        model="sprint",
        model_name='org/Sprint: "1.6B", v2',
        num_inference_steps=2,
        guidance_scale=4.25,
        seed=2**64 - 1,
        sampler="SCM",
        style_name="Fantasy Art",
    )
    assert a1111_parameters(metadata) == (
        "a cat\non a mat\n"
        "Negative prompt: blurry, low quality\n"
        "Steps: 2, Sampler: SCM, CFG scale: 4.25, Seed: 18446744073709551615, Size: 3840x2160, "
        'Model: "org/Sprint: \\"1.6B\\", v2", Style: Fantasy Art, Version: sana-service 1.2.3'
    )


@pytest.mark.parametrize(
    ("scale", "written"), [(0.0, "0"), (5.0, "5"), (10.0, "10"), (20.0, "20"), (7.5, "7.5"), (0.1, "0.1")]
)
def test_infotext_guidance_as_a1111_writes_it(scale: float, written: str) -> None:
    line = a1111_parameters(dataclasses.replace(CORAL, guidance_scale=scale)).splitlines()[-1]
    assert f", CFG scale: {written}, Seed" in line


def test_infotext_of_an_empty_prompt_begins_with_the_settings() -> None:
    assert a1111_parameters(dataclasses.replace(CORAL, prompt="")).startswith("Steps: 18, ")


def test_png_holds_both_forms_before_the_pixels() -> None:
    data = encode(PIXELS, "png", CORAL).data
    kinds = [kind for kind, _ in _png_chunks(data)]
    texts = _png_texts(data)
    assert texts["parameters"] == a1111_parameters(CORAL)
    assert json.loads(texts["sana"]) == {
        "prompt": "Underwater coral reef ecosystem",
        "negative_prompt": "",
        "model": "base",
        "model_name": "Sana_1600M",
        "num_inference_steps": 18,
        "guidance_scale": 5.0,
        "seed": 0,
        "width": 3840,
        "height": 2160,
        "sampler": "DPM++ 2M",
        "style_name": "(No style)",
        "software": "sana-service",
        "version": "1.2.3",
    }
    assert (b"tEXt", b"Software\0sana-service 1.2.3") in _png_chunks(data)
    assert kinds.index(b"IDAT") > max(at for at, kind in enumerate(kinds) if kind == b"iTXt")


def test_jpeg_holds_both_forms() -> None:
    data = encode(PIXELS, "jpeg", CORAL).data
    segments = _jpeg_segments(data)
    exif = piexif.load(segments[0xE1][0])
    assert _exif_infotext(data) == a1111_parameters(CORAL)
    assert exif["0th"][piexif.ImageIFD.Software] == b"sana-service 1.2.3"
    assert json.loads(segments[0xFE][0])["prompt"] == "Underwater coral reef ecosystem"


@pytest.mark.parametrize("output_format", ["png", "jpeg"])
@pytest.mark.parametrize("text", TRICKY.values(), ids=TRICKY.keys())
def test_any_prompt_comes_back_exactly(text: str, output_format: OutputFormat) -> None:
    metadata = dataclasses.replace(CORAL, prompt=text)
    data = encode(PIXELS, output_format, metadata).data
    assert read(data) == metadata
    infotext = _png_texts(data)["parameters"] if output_format == "png" else _exif_infotext(data)
    assert infotext == a1111_parameters(metadata) == read_infotext(data)
    assert "\0" not in infotext
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.size == (8, 8)


def test_nul_becomes_the_replacement_character_in_the_infotext() -> None:
    assert a1111_parameters(dataclasses.replace(CORAL, prompt="a\0b")).startswith("a\ufffdb\nSteps: ")


@pytest.mark.parametrize("text", TRICKY.values(), ids=TRICKY.keys())
def test_png_never_cuts(text: str) -> None:
    metadata = dataclasses.replace(CORAL, prompt=text, negative_prompt="🪼" * 10_000)
    assert read(encode(PIXELS, "png", metadata).data) == metadata
    metadata = dataclasses.replace(CORAL, prompt="🪼" * 10_000, negative_prompt=text)
    assert read(encode(PIXELS, "png", metadata).data) == metadata


def test_jpeg_cuts_two_longest_prompts_evenly_and_keeps_the_settings() -> None:
    metadata = dataclasses.replace(CORAL, prompt="🪸" * 10_000, negative_prompt="🪼" * 10_000)
    data = encode(PIXELS, "jpeg", metadata).data
    told = read(data)
    assert told is not None
    assert told == dataclasses.replace(metadata, prompt=told.prompt, negative_prompt=told.negative_prompt)
    for text, letter in ((told.prompt, "🪸"), (told.negative_prompt, "🪼")):
        assert text == letter * (len(text) - 1) + "…"
        # Half of 65,533 bytes less the other fields, at four bytes each.
        assert 8_000 < len(text) < 8_192
    segments = _jpeg_segments(data)
    assert 65_520 < len(segments[0xFE][0]) <= 65_533
    assert 64_000 < len(segments[0xE1][0]) <= 65_533
    prompt, negative, line = _exif_infotext(data).split("\n")
    assert line == a1111_parameters(CORAL).splitlines()[-1]
    assert prompt == "🪸" * (len(prompt) - 1) + "…"
    assert negative.removeprefix("Negative prompt: ") == "🪼" * (len(negative) - 18) + "…"


def test_jpeg_cuts_only_the_longer_text() -> None:
    metadata = dataclasses.replace(CORAL, prompt="x" * 9_000, negative_prompt="\x01" * 10_000)
    told = read(encode(PIXELS, "jpeg", metadata).data)
    assert told is not None
    assert told.prompt == "x" * 9_000
    # A control character takes six bytes of JSON: backslash, u, four digits.
    assert 9_300 < len(told.negative_prompt) < (65_533 - 9_000) / 6
    assert told.negative_prompt.endswith("\x01…")


_texts = st.text(max_size=60) | st.builds(mul, st.text(min_size=1, max_size=3), st.integers(1, 3_333))


@settings(max_examples=40, deadline=None)
@given(prompt=_texts, negative=_texts, output_format=st.sampled_from(["png", "jpeg"]))
def test_no_text_fails_or_breaks_the_file(prompt: str, negative: str, output_format: OutputFormat) -> None:
    metadata = dataclasses.replace(CORAL, prompt=prompt, negative_prompt=negative)
    data = encode(PIXELS, output_format, metadata).data
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    told = read(data)
    assert told is not None
    assert told.prompt == prompt or (output_format == "jpeg" and prompt.startswith(told.prompt[:-1]))
    infotext = read_infotext(data)
    assert infotext is not None
    assert infotext.endswith(a1111_parameters(CORAL).splitlines()[-1])


@pytest.mark.parametrize("output_format", ["png", "jpeg"])
def test_no_metadata_writes_none(output_format: OutputFormat) -> None:
    data = encode(PIXELS, output_format, None).data
    assert read(data) is None
    assert read_infotext(data) is None
    if output_format == "png":
        # The digital source type alone, which every picture has.
        assert {kind for kind, _ in _png_chunks(data)} == {b"IHDR", b"iTXt", b"IDAT", b"IEND"}
        assert set(_png_texts(data)) == {"XML:com.adobe.xmp"}
    else:
        # JFIF header, XMP, quantisation, frame, Huffman tables: no EXIF and no comment (FE).
        segments = _jpeg_segments(data)
        assert set(segments) == {0xE0, 0xE1, 0xDB, 0xC0, 0xC4}
        assert [segment.partition(b"\0")[0] for segment in segments[0xE1]] == [b"http://ns.adobe.com/xap/1.0/"]


def test_reads_a_path_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(PIXELS, "png", CORAL).data)
    assert read(path) == read(str(path)) == CORAL


@pytest.mark.parametrize(
    "comment",
    [b"", b"hello", b"[]", b"{}", b'{"prompt": 1}', b"[" * 60_000, b"\xff\xfe", b"9" * 5_000],
    ids=["empty", "text", "list", "object", "wrong type", "deep", "not utf-8", "long number"],
)
def test_foreign_comments_are_not_ours(comment: bytes) -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "jpeg", comment=comment)
    assert read(file.getvalue()) is None


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({"unknown": 1}, True),
        ({"guidance_scale": 5}, True),
        ({"model": "other"}, False),
        ({"seed": "0"}, False),
        ({"seed": True}, False),
        ({"width": 3840.0}, False),
        ({"prompt": None}, False),
    ],
)
def test_reader_checks_types_and_bears_newer_fields(change: dict[str, object], valid: bool) -> None:
    file = io.BytesIO()
    text = json.dumps(dataclasses.asdict(CORAL) | change)
    Image.fromarray(PIXELS).save(file, "jpeg", comment=text.encode())
    assert read(file.getvalue()) == (CORAL if valid else None)


@pytest.mark.parametrize("data", [b"", b"not a picture", b"GIF89a" + bytes(40)])
def test_other_files_are_an_error(data: bytes) -> None:
    with pytest.raises(OSError, match="cannot identify image file"):
        read(data)
