"""Against PyTorch's convolutions in NCHW."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.engine.kernels import DEVICE, ROUNDING, distance, normal

convolutions = pytest.importorskip("sana_service.engine.kernels.convolutions")

SIZES = [(5, 7), (3, 33), (35, 6)]
"""The last is several strips of lines high."""


def nchw(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return tokens.view(len(tokens), height, width, -1).permute(0, 3, 1, 2)


def as_tokens(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.permute(0, 2, 3, 1).flatten(1, 2)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_depthwise_glu(height: int, width: int):
    torch.manual_seed(0)
    x, weight, bias = normal(2, height * width, 36), normal(36, 1, 3, 3), normal(36)
    convolved = functional.conv2d(functional.silu(nchw(x, height, width)), weight, bias, padding=1, groups=36)
    value, gate = convolved.chunk(2, 1)
    result = convolutions.depthwise_glu(x.clone(), weight.flatten(1).t().contiguous(), bias, height, width)
    assert distance(result, as_tokens(value * functional.silu(gate))) < ROUNDING


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_depthwise_then_grouped(height: int, width: int):
    torch.manual_seed(1)
    x, weight, point = normal(2, height * width, 48), normal(48, 1, 5, 5), normal(48, 16, 1, 1)
    convolved = functional.conv2d(nchw(x, height, width), weight, padding=2, groups=48)
    matrices = point.view(3, 16, 16).transpose(1, 2).contiguous()
    result = convolutions.depthwise_grouped(x, weight.flatten(1).t().contiguous(), matrices, height, width)
    assert distance(result, as_tokens(functional.conv2d(convolved, point, groups=3))) < ROUNDING


def test_a_picture_of_4096_pixels_fits_a_gpu_s_grid(monkeypatch: pytest.MonkeyPatch):
    """Only a grid's first axis is longer than 65,535; no interpreter checks that. The decoder attends at an eighth."""
    grids: list[tuple[int, ...]] = []

    class Launch:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return lambda *_, **__: None

    for name in ("_silu_all", "_depthwise_glu", "_depthwise_grouped"):
        monkeypatch.setattr(convolutions, name, Launch())
    side = 4096 // 8
    tokens = torch.empty(1, side * side, 48, device="meta")
    weight, point = torch.empty(25, 48, device="meta"), torch.empty(3, 16, 16, device="meta")
    convolutions.depthwise_glu(tokens, weight[:9], weight[0], side, side)
    convolutions.depthwise_grouped(tokens, weight, point, side, side)
    assert len(grids) == 3
    assert all(axis <= 65_535 for grid in grids for axis in grid[1:]), grids


def test_bias_and_silu_in_place():
    torch.manual_seed(2)
    x, bias = normal(2, 6, 10, 24), normal(24)
    expected = functional.silu(x + bias)
    assert convolutions.bias_silu_(x, bias) is x
    assert distance(x, expected) < ROUNDING


@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 40)])
def test_phases_make_a_picture_with_its_shortcut(height: int, width: int):
    torch.manual_seed(3)
    channels, wide = 8, 16
    phases, bias, coarse = (
        normal(2, height + 1, width + 1, 4 * channels),
        normal(channels),
        normal(2, height, width, wide),
    )
    expected = functional.pixel_shuffle(coarse.permute(0, 3, 1, 2).repeat_interleave(2, dim=1), 2).permute(0, 2, 3, 1)
    expected = expected + bias
    for below in range(2):
        for right in range(2):
            window = phases[:, below : below + height, right : right + width].unflatten(3, (4, channels))
            expected[:, below::2, right::2] += window[:, :, :, 2 * below + right]
    assert distance(convolutions.join_phases(phases, bias, coarse), expected) < ROUNDING


@pytest.mark.parametrize(("shape", "channels"), [((2, 3, 5), 12), ((1, 2, 130), 16)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_to_planes(shape: tuple[int, int, int], channels: int, bias: bool):
    torch.manual_seed(4)
    layer = torch.nn.Conv2d(channels, 3, 3, padding=1, bias=bias).to(DEVICE).requires_grad_(False)
    assert convolutions.ToPlanes.fits(layer)
    x = normal(*shape, channels)
    expected = layer(x.permute(0, 3, 1, 2))
    assert distance(convolutions.ToPlanes(layer.weight.data, layer.bias)(x), expected) < ROUNDING


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 0}, {"dilation": 2}, {"kernel_size": 5}, {"groups": 2}])
def test_other_convolutions_do_not_go_to_planes(options: dict[str, Any]):
    options = {"kernel_size": 3, "padding": 1, **options}
    assert not convolutions.ToPlanes.fits(torch.nn.Conv2d(4, 2, **options))
    assert not convolutions.ToPlanes.fits(torch.nn.Conv2d(4, 17, 3, padding=1))
