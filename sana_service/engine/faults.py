"""What an exception on a device means, and how to let go of what it holds."""

from __future__ import annotations

import traceback

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left.

    Besides the caching allocator's own class there are bare RuntimeErrors, known by their text alone:
    of the CPU allocator, of cuBLAS for its workspace, and of the driver.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def answers(device: torch.device) -> bool:
    """Whether a device still computes: some errors of CUDA end one call, others every later one too."""
    try:
        return torch.ones(2, device=device).sum().item() == 2
    except RuntimeError:
        return False


def forget_locals(error: BaseException) -> None:
    """Empty the frames of an error's trace: they hold a job's tensors as long as anyone holds the error."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
