"""Decoding, and the way from a bin to the size asked for, against Pillow's resampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sana_service.engine.backend import plain_decoder
from sana_service.engine.bins import Box, Size
from sana_service.engine.decode import LatentDecoder, render, require_finite
from sana_service.engine.errors import NotFinite
from tests.pairs import pillow_resize


def scene(width: int, height: int, seed: int = 0) -> torch.Tensor:
    """(3, height, width) float32 in [0, 1], with edges and noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(3, height, width, generator=generator)
    return torch.where(torch.arange(width) % 16 < 8, noise, 1 - noise / 4).clamp(0, 1)


@pytest.mark.parametrize(
    ("drawn", "crop", "size"),
    [
        (Size(96, 64), Box(0, 5, 96, 54), Size(256, 144)),
        (Size(96, 64), Box(8, 0, 80, 64), Size(20, 16)),
        (Size(64, 64), Box(0, 0, 64, 64), Size(64, 65)),
        (Size(32, 128), Box(15, 0, 1, 128), Size(3, 700)),
    ],
)
def test_render_is_pillows_bicubic_with_antialiasing(drawn, crop, size):
    image = scene(drawn.width, drawn.height)
    pixels = render(image, crop, size)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (size.height, size.width, 3)
    # Half a step of quantisation, and rounding: Pillow's weights are float64.
    assert np.abs(pixels.numpy() - pillow_resize(image, crop, size)).max() <= 0.5 + 255 * 1e-4


def test_overshoot_is_clamped():
    """Bicubic kernels overshoot at an edge; unclamped, 256 would wrap to black."""
    image = torch.zeros(3, 16, 16)
    image[:, :, 8:] = 1.0
    pixels = render(image, Box(0, 0, 16, 16), Size(160, 160))
    assert pixels[:, :40].max() == 0
    assert pixels[:, -40:].min() == 255


def test_without_a_change_of_size_the_pixels_are_the_pictures_own():
    image = scene(64, 32)
    before = image.clone()
    pixels = render(image, Box(4, 2, 50, 30), Size(50, 30))
    expected = (image[:, 2:32, 4:54].permute(1, 2, 0).numpy() * 255).round().astype("uint8")
    np.testing.assert_array_equal(pixels.numpy(), expected)
    assert torch.equal(image, before)


def test_halves_are_rounded_to_even_as_numpy_does():
    levels = torch.tensor([0.5, 1.5, 2.5, 253.5, 254.5], dtype=torch.float64) / 255
    image = levels.float().expand(3, 1, 5)
    expected = (image[0, 0].numpy() * 255).round()
    assert render(image, Box(0, 0, 5, 1), Size(5, 1))[0, :, 0].tolist() == expected.tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(1, 90))
def test_every_crop_and_size_gives_the_size_asked_for(crop_width, crop_height, width, height):
    box = Box((40 - crop_width) // 2, (40 - crop_height) // 2, crop_width, crop_height)
    assert render(scene(40, 40), box, Size(width, height)).shape == (height, width, 3)


def test_decode_is_the_stock_decoder_and_its_postprocessing(models, stock):
    latents = torch.randn(2, 32, 4, 6, generator=torch.Generator().manual_seed(0))
    vae = stock.base.vae
    with torch.no_grad():
        decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        expected = stock.base.image_processor.postprocess(decoded, output_type="pt")
        ours = models.checkpoints["base"].vae
        images = LatentDecoder(ours, plain_decoder(ours))(latents)
    assert images.shape == (2, 3, 128, 192)
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 2, 3, 0), (1, 2, 99, 99)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found(value, place):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    latents, values = torch.randn(2, 4, device=device), torch.randn(2, 3, 100, 100, device=device)
    require_finite(latents=latents, pixels=values)
    values[place] = value
    with pytest.raises(NotFinite, match="the pixels are"):
        require_finite(latents=latents, pixels=values)
    with pytest.raises(NotFinite, match="the latents are"):
        require_finite(latents=values, pixels=latents)


def test_the_largest_numbers_are_finite():
    """Of which a sum is not."""
    most = torch.finfo(torch.float32).max
    largest = torch.full((4, 4), most)
    require_finite(pixels=largest, latents=torch.tensor([-most, 5e-45, 0.0]))
    with pytest.raises(NotFinite, match="pixels"):
        require_finite(pixels=2 * largest)
