"""JPEG files, whole and by strips: byte for byte what Pillow writes with the same restart markers."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sana_service.images import JPEG_QUALITY, encode
from sana_service.jpeg import COMMENT, EXIF, write_jpeg, xmp_segment
from sana_service.metadata import ImageMetadata, jpeg_comment, jpeg_exif
from sana_service.provenance import XMP


def picture(height: int, width: int) -> np.ndarray:
    """Every frequency there is, and colours."""
    noise = np.random.default_rng(height).integers(0, 64, (height, width, 3))
    rows, columns = np.mgrid[0:height, 0:width]
    colours: np.ndarray = noise + np.stack([rows, columns, rows + columns], axis=-1) % 192
    return colours.astype(np.uint8)


def pillows(pixels: np.ndarray, quality: int, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=quality, **options)
    return file.getvalue()


@pytest.mark.parametrize("quality", [1, 75, 95, 100])
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (512, 512)])
def test_a_small_picture_is_in_one_piece(size: tuple[int, int], quality: int) -> None:
    pixels = picture(*size)
    assert write_jpeg(pixels, quality) == pillows(pixels, quality)


@pytest.mark.parametrize(
    ("size", "lines"),
    [
        pytest.param((1024, 1024), 32, id="two strips"),
        pytest.param((1043, 1201), 33, id="a part of a block at both ends"),
        pytest.param((2160, 3840), 17, id="the default size"),
        pytest.param((4096, 4096), 32, id="the largest, eight strips"),
        pytest.param((40, 60000), 1, id="few lines"),
    ],
)
def test_strips_are_the_same_picture(size: tuple[int, int], lines: int) -> None:
    pixels = picture(*size)
    with ThreadPoolExecutor(3) as pool:
        made = write_jpeg(pixels, 95, each=pool.map)
    assert made == write_jpeg(pixels, 95) == pillows(pixels, 95, restart_marker_rows=lines)
    with Image.open(io.BytesIO(made)) as ours, Image.open(io.BytesIO(pillows(pixels, 95))) as whole:
        assert np.array_equal(np.asarray(ours), np.asarray(whole))


@pytest.mark.parametrize("size", [(64, 48), (1024, 1024)])
def test_metadata_stands_where_pillow_writes_it(size: tuple[int, int]) -> None:
    told = ImageMetadata("a reef", "", "sprint", "tiny", 2, 5.0, 7, size[1], size[0], "SCM")
    pixels = picture(*size)
    options = {"restart_marker_rows": 32} if size[0] > 64 else {}
    expected = pillows(
        pixels, JPEG_QUALITY, exif=jpeg_exif(told), xmp=XMP, comment=jpeg_comment(told), **options,
    )  # fmt: skip
    assert encode(pixels, "jpeg", told).data == expected


def test_a_line_that_is_mirrored_needs_no_copy_by_the_caller() -> None:
    pixels = picture(32, 32)[:, ::-1]
    assert write_jpeg(pixels, 95) == pillows(np.ascontiguousarray(pixels), 95)


@pytest.mark.parametrize("segment", [(COMMENT, bytes(65534)), (EXIF, bytes(65534)), xmp_segment(bytes(65505))])
def test_what_no_segment_holds_is_refused(segment: tuple[int, bytes]) -> None:
    with pytest.raises(ValueError, match="65534 bytes do not fit"):
        write_jpeg(picture(8, 8), 95, [segment])
    marker, data = segment
    assert data[:-1] in write_jpeg(picture(8, 8), 95, [(marker, data[:-1])])


def test_a_fault_in_a_strip_is_the_callers() -> None:
    def failing(*_: object) -> list[bytes]:
        raise MemoryError

    with pytest.raises(MemoryError):
        write_jpeg(picture(8, 8), 95, each=failing)
