"""The count of operations against the published architecture, and against torch's own count."""

from __future__ import annotations

import pytest

from loadtests.floor import BINS, BUNDLED, SANA, nearest_bin, share_of_floor


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # Tera-operations, by torch's FlopCounterMode on the full-size modules.
        (SANA.transformer(1024) / 1e12, 2.967),
        (SANA.transformer(1008) / 1e12, 2.922),
        (SANA.text(300) / 1e12, 1.234),
        (SANA.text(512) / 1e12, 2.129),
        (SANA.decoder(1024, 1024) / 1e12, 8.369),
        (SANA.decoder(3840, 2160) / 1e12, 8.238),
    ],
)
def test_operations_of_the_parts(found, expected):
    assert found == pytest.approx(expected, abs=0.0006)


def test_the_floor_of_an_h100():
    """118.1 ms for 18 guided steps and 16.4 ms for two, at 989e12 operations a second and 3840x2160."""
    assert SANA.picture("generate", 3840, 2160, 18) / 989e12 == pytest.approx(0.1181, abs=0.0001)
    assert SANA.picture("sprint", 3840, 2160, 2) / 989e12 == pytest.approx(0.0164, abs=0.0001)
    assert share_of_floor(10.0, 100.0, 5.0) == 0.5


def test_bins_are_the_stock_pipelines():
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN as table

    assert sorted(BINS) == sorted((int(height), int(width)) for height, width in table.values())
    for width, height in ((3840, 2160), (1024, 1024), (512, 2000), (14142, 1186), (700, 701), (1000, 640)):
        key = min(table, key=lambda name: abs(float(name) - height / width))
        assert nearest_bin(width, height) == tuple(table[key])


def test_the_bundled_count_is_torchs():
    import torch
    from diffusers import AutoencoderDC
    from torch.utils.flop_counter import FlopCounterMode

    from sana_service.models.bundled import base_folder

    vae = AutoencoderDC.from_pretrained(base_folder() / "vae").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        vae.decode(torch.randn(1, 32, 16, 16))
    assert counted.get_total_flops() == BUNDLED.decoder_per_pixel * 512**2
