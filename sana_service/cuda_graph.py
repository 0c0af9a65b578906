"""One captured CUDA graph: work of fixed shapes that is launched as a whole, from and to memory of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Tensors = tuple[torch.Tensor, ...]

URGENT = -1
"""Priority of the streams of all stages but denoising, which has 0: short work does not queue behind long."""


@dataclass(frozen=True, eq=False)
class Pool:
    """What graphs that never run at the same time share.

    Args:
        handle: of their scratch memory.
        stream: that they are captured on and never run on. cuBLAS keeps a workspace for each stream, with counters that
            its kernels wait for; graphs captured on one stream, run at the same time, wait for each other for ever.
    """

    handle: Any
    stream: torch.cuda.Stream


def new_pool(device: torch.device, priority: int = 0) -> Pool:
    """Scratch memory for graphs that never run at the same time.

    Args:
        priority: of the stream that they will run on; a graph's kernels keep that of their capture.
    """
    stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
    return Pool(torch.cuda.graph_pool_handle(), stream)


class Graph:
    """One captured call; made and replayed in inference mode, by one thread at a time.

    Args:
        work: of fresh and fixed tensors to one tensor; launches only, and depends on nothing else that changes.
        fresh: of the shapes that will be copied in for each call; their values do not matter.
        fixed: read where they are.
        pool: of the device that is current.

    Raises:
        RuntimeError: the work cannot be captured, or there is no memory for it.
    """

    def __init__(self, work: Callable[..., torch.Tensor], fresh: Tensors, fixed: Tensors, pool: Pool) -> None:
        self._inputs = tuple(torch.zeros_like(tensor) for tensor in fresh)
        self._fixed = fixed  # so that their memory stays what it is
        # Once uncaptured, on another stream: libraries make their handles and plans, which a capture may not.
        work(*self._inputs, *fixed)
        torch.cuda.current_stream().synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(pool.stream):
            # Other threads go on launching and allocating.
            self._graph.capture_begin(pool=pool.handle, capture_error_mode="thread_local")
            try:
                self._output = work(*self._inputs, *fixed)
            finally:
                self._graph.capture_end()

    def replay(self, fresh: Tensors) -> torch.Tensor:
        """The result, a tensor of the caller's own; in the order of the calling thread's stream."""
        for place, tensor in zip(self._inputs, fresh, strict=True):
            place.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._output.clone()


def capture_alone(work: Callable[..., torch.Tensor], fresh: Tensors, priority: int) -> Graph:
    """A graph on the device of the fresh tensors that shares nothing with others.

    Args:
        work, fresh: see `Graph`.
        priority: of the streams that it will run on.

    Raises:
        RuntimeError: the work cannot be captured, or there is no memory for it.
    """
    device = fresh[0].device
    with torch.inference_mode(), torch.cuda.device(device):
        return Graph(work, fresh, (), new_pool(device, priority))
