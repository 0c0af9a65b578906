"""Triton's kernels: on a CUDA device where there is one, else in Triton's interpreter, which runs them in numpy."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

ROUNDING = 1e-5

torch.backends.cudnn.allow_tf32 = False  # the stock convolutions' float32 is to be float32


def distance(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 distance."""
    assert result.shape == expected.shape
    return float((result.float() - expected.float()).norm() / expected.float().norm())


def normal(*shape: int) -> torch.Tensor:
    """Standard normal numbers where the kernels run."""
    return torch.randn(*shape, device=DEVICE)
