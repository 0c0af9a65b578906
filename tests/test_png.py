"""PNG files against Pillow, which reads every pixel and checksum of them."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sana_service.png import write_png


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def opened(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # checksums
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


@given(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from(["noise", "flat", "extremes"]), st.integers(0, 2**32 - 1)
)
def test_every_pixel_survives(height, width, kind, seed):
    pixels = noise(height, width, seed)
    if kind == "flat":
        pixels[:] = pixels[0, 0]
    elif kind == "extremes":
        pixels = (pixels % 2) * np.uint8(255)
    assert np.array_equal(opened(write_png(pixels)), pixels)


def test_a_view_is_written_as_it_looks():
    pixels = noise(40, 30)
    for view in (pixels[:, ::-1], pixels[5:30:3, 2:20], pixels.transpose(1, 0, 2)):
        assert np.array_equal(opened(write_png(view)), view)


def test_chunks_stand_before_the_picture_with_their_checksums():
    data = write_png(noise(3, 4), [(b"tEXt", b"Comment\0a scene"), (b"tEXt", b"Title\0b")])
    assert data.index(b"Comment") < data.index(b"Title") < data.index(b"IDAT")
    with Image.open(io.BytesIO(data)) as image:
        assert image.info == {"Comment": "a scene", "Title": "b"}
    start = data.index(b"tEXt")
    length = int.from_bytes(data[start - 4 : start])
    body = data[start : start + 4 + length]
    assert int.from_bytes(data[start + 4 + length :][:4]) == zlib.crc32(body)


@pytest.mark.parametrize("flat", [False, True])
def test_files_are_about_as_small_as_pillows_at_level_1(flat):
    """On smooth colours with some noise, and on one with large even areas."""
    rows, columns = np.mgrid[0:512, 0:512]
    waves = np.stack([rows * 2, columns * 2, rows + columns], axis=-1) % 240
    pixels = (waves + noise(512, 512) % 8).astype(np.uint8)
    if flat:
        pixels = (
            np.where((rows - 256) ** 2 + (columns - 256) ** 2 < 10_000, 200, 30)[..., None]
            .repeat(3, 2)
            .astype(np.uint8)
        )
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    assert len(write_png(pixels)) <= 1.15 * len(file.getvalue())
