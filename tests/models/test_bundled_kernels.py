"""The depthwise convolution over a neighbour table: in PyTorch against conv2d, and the Triton kernels against that.

Where Triton is installed the kernels run in its interpreter on the CPU, or on the accelerator where there is one.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from diffusers import SanaTransformer2DModel

from sana_service.models.bundled.architecture import Architecture
from sana_service.models.bundled.training import fast

GRIDS = [(16, 16), (8, 32), (21, 12)]
CHECK = """
import torch
from diffusers import SanaTransformer2DModel
from sana_service.models.bundled.architecture import Architecture
from sana_service.models.bundled.training import fast, kernels
where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(0)
model = SanaTransformer2DModel(**Architecture(layers=1).transformer()).to(where)
index = fast.grids(model, [(21, 12)]).neighbours[0].int()
print(kernels.check(index, 40, torch.float32), kernels.check(index.flip(1).roll(1, 0), 40, torch.float32))
"""


def neighbours(grid):
    model = SanaTransformer2DModel(**Architecture(layers=1).transformer())
    return fast.grids(model, [grid]).neighbours[0]


@pytest.mark.parametrize("grid", GRIDS)
def test_the_table_convolution_is_conv2d_with_its_gradients(grid):
    tall, wide = grid
    torch.manual_seed(0)
    image = torch.randn(1, 24, tall, wide, requires_grad=True)
    weight, bias = torch.randn(24, 1, 3, 3, requires_grad=True), torch.randn(24, requires_grad=True)
    gradient = torch.randn(1, 24, tall, wide)
    expected = torch.nn.functional.conv2d(image, weight, bias, padding=1, groups=24)
    expected.backward(gradient)

    def rows(picture):
        return torch.nn.functional.pad(picture.detach()[0].flatten(1).t(), (0, 0, 0, fast.TOKENS - tall * wide))

    x = rows(image).requires_grad_()
    table = weight.detach().flatten(1).t().clone().requires_grad_()
    offset = bias.detach().clone().requires_grad_()
    ours = fast.Depthwise.apply(x, table, offset, neighbours(grid))
    ours.backward(rows(gradient))
    torch.testing.assert_close(ours[: tall * wide], rows(expected)[: tall * wide], atol=1e-5, rtol=1e-5)
    assert image.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(x.grad, rows(image.grad), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(table.grad, weight.grad.flatten(1).t(), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(offset.grad, bias.grad, atol=1e-3, rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with torch's CUDA builds alone")
def test_the_triton_kernels_compute_what_pytorch_does():
    environment = os.environ if torch.cuda.is_available() else os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", CHECK]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    right, crooked = (float(number) for number in run.stdout.split())
    assert right < 1e-4
    assert crooked > 0.1  # a table that is no grid's breaks the backward pass's assumption, and the check sees it
