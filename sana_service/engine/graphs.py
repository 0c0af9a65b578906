"""Captured CUDA graphs of a stage's work, by shape, within a budget of memory.

Work on a new shape runs uncaptured, launch by launch, with the same kernels and so to the same bits; a thread beside
captures it meanwhile, and the next call replays the graph. No caller ever waits for a capture. What is in flight on one
stream may be replayed again there: inputs are copied in and results copied out in stream order. All of a pool's graphs
share their scratch memory, so at most one of them may run at a time.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from sana_service.cuda_graph import Graph, Pool, Tensors, new_pool
from sana_service.engine.gate import MemoryGate

_LOG = logging.getLogger("sana.engine")

_SPARE_BYTES = 2 * 2**30
"""Of the device, that must be free when a capture begins."""


class Capturer:
    """The thread that captures, one device's graphs one after another.

    Args:
        device: a CUDA device.
        budget_bytes: for the graphs' scratch memory and results, of all pools together.
        gate: of the device's memory: the allocator keeps all it has while a capture is under way, so that work which
            must be alone waits for it.
    """

    def __init__(self, device: torch.device, budget_bytes: int, gate: MemoryGate) -> None:
        self.device = device
        self.budget_bytes = budget_bytes
        self._gate = gate
        self._stopped = False
        self._executor = ThreadPoolExecutor(1, f"sana-{device}-capture")
        self._pools: list[Pool] = []
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def new_pool(self, priority: int = 0) -> Pool:
        """Scratch memory for graphs that never run at the same time.

        Args:
            priority: of the stream that they will run on; a graph's kernels keep that of their capture.
        """
        pool = new_pool(self.device, priority)
        self._pools.append(pool)
        return pool

    def submit(self, work: Callable[[], None]) -> Future[None] | None:
        """Do it in the capturing thread; None once that has stopped."""
        try:
            return self._executor.submit(self._run, work)
        except RuntimeError:
            if not self._stopped:
                raise
            return None

    def _run(self, work: Callable[[], None]) -> None:
        with (
            self._gate.shared(),
            torch.inference_mode(),
            torch.cuda.device(self.device),
            torch.cuda.stream(self._stream),
        ):
            work()

    def used_bytes(self) -> int:
        """What all pools hold of the device."""
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        pools = {pool.handle for pool in self._pools}
        return sum(one["total_size"] for one in segments if tuple(one.get("segment_pool_id", (0, 0))) in pools)

    def has_room(self) -> bool:
        """Whether another graph may be captured."""
        return torch.cuda.mem_get_info(self.device)[0] > _SPARE_BYTES and self.used_bytes() < self.budget_bytes

    def stop(self) -> None:
        """Begin no more captures; one that has begun goes on."""
        self._stopped = True
        self._executor.shutdown(wait=False, cancel_futures=True)


class GraphSet:
    """Calls a function by its graphs where there are any.

    Args:
        work: of fresh and fixed tensors to one tensor; launches only, and depends on nothing else that changes.
        capturer: of its device.
        pool: scratch memory, shared with those that run on the same stream.
        most: graphs that are kept; the least recently used go first.
    """

    def __init__(self, work: Callable[..., torch.Tensor], capturer: Capturer, pool: Pool, most: int = 48) -> None:
        self._work = work
        self._capturer = capturer
        self._pool = pool
        self._most = most
        self._lock = threading.Lock()
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._wanted: set[Hashable] = set()
        self._cleared = 0

    def __call__(self, key: Hashable, fresh: Tensors, fixed: Tensors = ()) -> torch.Tensor:
        """The work's result, a tensor of the caller's own.

        Args:
            key: of all shapes, and of where the fixed tensors are.
            fresh: copied in for each call.
            fixed: read where they are; the same memory for the same key.
        """
        with self._lock:
            graph = self._graphs.get(key)
            if graph is not None:
                self._graphs.move_to_end(key)
                return graph.replay(fresh)
        self.capture(key, fresh, fixed)
        return self._work(*fresh, *fixed)

    def capture(self, key: Hashable, fresh: Sequence[torch.Tensor], fixed: Tensors = ()) -> Future[None] | None:
        """Begin to capture a key, unless that has begun; the tensors' values do not matter."""
        with self._lock:
            if key in self._wanted:
                return None
            self._wanted.add(key)
            cleared = self._cleared
        return self._capturer.submit(lambda: self._capture(key, tuple(fresh), fixed, cleared))

    def _capture(self, key: Hashable, fresh: Tensors, fixed: Tensors, cleared: int) -> None:
        if not self._capturer.has_room():
            # It stays wanted: to drop another graph would give nothing back, since a pool's graphs share its memory.
            _LOG.warning("no memory for the CUDA graph of %s: it runs uncaptured", key)
            return
        try:
            graph = Graph(self._work, fresh, fixed, self._pool)
        except RuntimeError as error:
            # It stays wanted, so it is not tried again: the uncaptured way is slower and just as good.
            _LOG.warning("no CUDA graph for %s: %s", key, str(error).partition("\n")[0])
            return
        with self._lock:
            if cleared != self._cleared:
                return
            self._graphs[key] = graph
        while len(self._graphs) > self._most:
            self._drop_oldest()

    def _drop_oldest(self) -> bool:
        """Forget the least recently used; False where there is none."""
        with self._lock:
            if not self._graphs:
                return False
            key, graph = self._graphs.popitem(last=False)
            self._wanted.discard(key)
        torch.cuda.synchronize(self._capturer.device)
        del graph
        return True

    def clear(self) -> None:
        """Forget all graphs, and those that are being captured."""
        with self._lock:
            self._cleared += 1
            self._wanted.clear()
        while self._drop_oldest():
            pass
