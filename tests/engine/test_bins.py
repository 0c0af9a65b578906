"""Bins as the stock image processor chooses them; crop boxes from arithmetic by hand."""

from __future__ import annotations

import pytest
from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN
from hypothesis import given
from hypothesis import strategies as st

from sana_service.engine.bins import Box, Size, crop_box, nearest_bin

sides = st.integers(64, 14142)
stock_tables = st.sampled_from(
    [
        (16, ASPECT_RATIO_512_BIN),
        (32, ASPECT_RATIO_1024_BIN),
        (64, ASPECT_RATIO_2048_BIN),
        (128, ASPECT_RATIO_4096_BIN),
    ]
)


@given(sides, sides, stock_tables)
def test_the_bin_is_the_one_that_stock_chooses(width, height, stock):
    sample_size, table = stock
    stock_height, stock_width = PixArtImageProcessor.classify_height_width_bin(height, width, table)
    assert nearest_bin(width, height, sample_size) == Size(stock_width, stock_height)


@pytest.mark.parametrize(
    ("width", "height", "drawn"),
    [
        (3840, 2160, Size(1344, 768)),
        (1024, 768, Size(1152, 832)),
        (768, 1024, Size(896, 1152)),
        (512, 512, Size(1024, 1024)),
        (64, 14142, Size(512, 2048)),
        (14142, 64, Size(2048, 512)),
    ],
)
def test_bins_of_common_and_extreme_sizes(width, height, drawn):
    assert nearest_bin(width, height, 32) == drawn


@pytest.mark.parametrize("sample_size", [0, 31, 256])
def test_an_unknown_sample_size_is_an_error(sample_size):
    with pytest.raises(ValueError, match=f"sample_size {sample_size}"):
        nearest_bin(1024, 1024, sample_size)


@pytest.mark.parametrize(
    ("drawn", "requested", "box"),
    [
        (Size(1024, 1024), Size(1024, 1024), Box(0, 0, 1024, 1024)),
        (Size(1024, 1024), Size(512, 512), Box(0, 0, 1024, 1024)),
        # 1344 * 2160 / 3840 = 756 rows, (768 - 756) / 2 = 6 above them
        (Size(1344, 768), Size(3840, 2160), Box(0, 6, 1344, 756)),
        # 832 * 1024 / 768 = 1109.33 columns, (1152 - 1109) / 2 = 21.5
        (Size(1152, 832), Size(1024, 768), Box(21, 0, 1109, 832)),
        # 2048 * 64 / 14142 = 9.27 columns, (512 - 9) / 2 = 251.5
        (Size(512, 2048), Size(64, 14142), Box(251, 0, 9, 2048)),
        # 512 * 1 / 2000 is less than a pixel
        (Size(512, 512), Size(1, 2000), Box(255, 0, 1, 512)),
        # 5 * 1 / 2 = 2.5 and 7 * 1 / 2 = 3.5 go to the even neighbour
        (Size(9, 5), Size(1, 2), Box(3, 0, 2, 5)),
        (Size(9, 7), Size(1, 2), Box(2, 0, 4, 7)),
    ],
)
def test_crop_boxes_by_hand(drawn, requested, box):
    assert crop_box(drawn, requested) == box


@given(sides, sides)
def test_the_crop_is_central_as_large_as_fits_and_of_the_aspect_asked_for(width, height):
    drawn = nearest_bin(width, height, 32)
    box = crop_box(drawn, Size(width, height))
    right = drawn.width - box.left - box.width
    bottom = drawn.height - box.top - box.height
    assert right - box.left in {0, 1}
    assert bottom - box.top in {0, 1}
    assert box.width == drawn.width or box.height == drawn.height
    # One side is the bin's; the other is within half a pixel of the exact one, or the single pixel that must remain.
    width_is_exact = abs(box.width - box.height * width / height) <= 0.5 or box.width == 1
    height_is_exact = abs(box.height - box.width * height / width) <= 0.5 or box.height == 1
    assert (box.height == drawn.height and width_is_exact) or (box.width == drawn.width and height_is_exact)
