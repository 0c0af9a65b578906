"""Numbers that the codes can hold come back; others are rounded, which Triton's interpreter does wrongly."""

import pytest
import torch

from tests.engine.kernels import DEVICE, distance, normal

quantize = pytest.importorskip("sana_service.engine.kernels.quantize")

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def test_every_row_has_its_own_scale():
    every = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()]
    x = every * torch.tensor([2.0**-20, 1.0, 2.0**9], device=DEVICE)[:, None, None]
    codes, scales = quantize.quantize_rows(x)
    assert scales.flatten().tolist() == [2.0**-20, 1.0, 2.0**9]
    assert torch.equal(codes.float() * scales, x.view(3, -1))


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter loses the carry when it rounds")
def test_rounding():
    torch.manual_seed(0)
    x = normal(64, 256)
    codes, scales = quantize.quantize_rows(x)
    assert torch.equal(codes.view(torch.uint8), (x / scales).to(torch.float8_e4m3fn).view(torch.uint8))
    assert distance(codes.float() * scales, x) < 0.03


def test_an_empty_row_stays_empty():
    codes, scales = quantize.quantize_rows(torch.zeros(2, 16, device=DEVICE))
    assert not codes.float().any()
    assert (scales > 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(value: float):
    x = torch.ones(2, 16, device=DEVICE)
    x[1, 3] = value
    codes, scales = quantize.quantize_rows(x)
    back = codes.float() * scales
    assert torch.isfinite(back[0]).all()
    assert not torch.isfinite(back[1]).all()
