"""The other Sana layouts: 512, 2048 and 4096 pixels, with tiny weights and the real latent sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SanaTransformer2DModel

from sana_service.engine.bins import Size
from sana_service.engine.limits import default_limits
from sana_service.models.checkpoint import Models
from tests.pairs import Stock, job, local_engine, with_checkpoint

LAYOUTS = {512: 16, 2048: 64, 4096: 128}
"""Pixels of a square picture to `sample_size`."""

CHANGES: dict[int, dict[str, Any]] = {
    512: {"patch_size": 1},
    2048: {"patch_size": 1, "interpolation_scale": 2},
    4096: {"patch_size": 1, "interpolation_scale": 2, "qk_norm": None},
}


def with_layout(models: Models, pixels: int) -> Models:
    """The quick pair with a base transformer of another layout."""
    config = dict(models.checkpoints["base"].transformer.config)
    torch.manual_seed(pixels)
    transformer = SanaTransformer2DModel.from_config(
        {**config, "sample_size": LAYOUTS[pixels], "num_attention_heads": 1, "num_cross_attention_heads": 1}
        | {"cross_attention_dim": 32, "cross_attention_head_dim": 32, **CHANGES[pixels]}
    )
    return with_checkpoint(models, transformer=transformer.eval().requires_grad_(False))


@pytest.mark.parametrize("pixels", LAYOUTS)
def test_a_layout_draws_at_its_own_size_what_stock_draws(pixels: int, models: Models, stock: Stock):
    layout = with_layout(models, pixels)
    request = job(width=pixels, height=pixels, num_inference_steps=1)
    engine = local_engine(layout, safety=None, nsfw_threshold=0.5, max_queue=1)
    engine.start()
    picture = engine.submit(request).result(120).pixels[0]
    assert engine.stop()
    original, stock.base.transformer = stock.base.transformer, layout.checkpoints["base"].transformer
    try:
        expected = stock.draw(request)[0]
    finally:
        stock.base.transformer = original
    assert picture.shape == (pixels, pixels, 3)
    assert expected.std() > 0.02
    assert np.abs(picture - 255 * expected).max() <= 0.5 + 255e-4


@pytest.mark.parametrize(("pixels", "images", "seats"), [(512, 4, 10), (2048, 1, 4), (4096, 1, 4)])
def test_larger_pictures_get_smaller_batches(pixels, images, seats, models):
    limits = default_limits(replace(with_layout(models, pixels), device=torch.device("cuda")))
    side = LAYOUTS[pixels]
    assert max(1, limits.batch_cells["base"] // side**2) == images
    assert limits.seats["base"] == seats


def test_on_a_cpu_images_are_denoised_one_by_one(models):
    assert set(default_limits(models).batch_cells.values()) == {1024}


def test_where_memory_is_short_a_picture_is_decoded_in_tiles(models: Models, monkeypatch: pytest.MonkeyPatch):
    """And from then on without trying it whole; the tiles' seams do not show."""
    layout = with_layout(models, 2048)
    checkpoint = layout.checkpoints["base"]
    request = job(width=2048, height=2048, num_inference_steps=1)
    attempts: list[Size] = []

    def short(latents: torch.Tensor, **_: Any) -> None:
        attempts.append(Size(latents.shape[3], latents.shape[2]))
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = local_engine(layout, safety=None, nsfw_threshold=0.5, max_queue=1)
    engine.start()
    whole = engine.submit(request).result(120).pixels
    monkeypatch.setattr(checkpoint.vae, "decode", short)
    tiled = [engine.submit(replace(request, deadline=request.deadline + 60)).result(120).pixels for _ in range(2)]
    assert engine.stop()
    assert attempts == [Size(64, 64)] * 2  # beside others, then alone
    assert np.array_equal(tiled[0], tiled[1])
    difference = np.abs(tiled[0].astype(int) - whole)
    assert difference.mean() < 0.1 * whole.std()
    assert difference.max() > 0
