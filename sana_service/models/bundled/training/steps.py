"""What the stages share: an optimiser with averaged weights, and steps captured as CUDA graphs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

Step = Callable[[], None]


class Trainer:
    """AdamW with clipped gradients, a linear or cosine schedule from outside, and an exponential average.

    Args:
        modules: all their parameters are trained.
        averaging: decay of the average; its start is shorter.
    """

    def __init__(self, modules: Sequence[nn.Module], *, averaging: float = 0.999) -> None:
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
            parameter.grad = torch.zeros_like(parameter)
        self.device = self.parameters[0].device
        self.gradients = [parameter.grad for parameter in self.parameters]
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.loss = torch.zeros((), device=self.device)
        self.steps = 0
        self._averaging = averaging
        fused = self.device.type == "cuda"
        self._optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=0.01, fused=fused)
        self._pool = torch.cuda.graph_pool_handle() if fused else None

    def backward(self, loss: Callable[[], Tensor]) -> Step:
        """Make a function that computes the gradients, captured as a CUDA graph where there is CUDA.

        Args:
            loss: reads its inputs from tensors that are always the same ones.
        """

        def run() -> None:
            torch._foreach_zero_(self.gradients)
            with torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda", cache_enabled=False):
                value = loss()
            value.backward()  # type: ignore[no-untyped-call]
            self.loss.copy_(value.detach())

        if self._pool is None:
            return run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph.replay

    def update(self, learning_rate: float) -> None:
        """One step of the optimiser and of the average, from the gradients that stand there."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (self.steps + 1) / 100)
        self._optimizer.step()
        self.steps += 1
        decay = min(self._averaging, self.steps / (self.steps + 9))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The modules hold the averaged weights inside."""
        with torch.no_grad():
            trained = [parameter.detach().clone() for parameter in self.parameters]
            torch._foreach_copy_(self.parameters, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, trained)


class Clock:
    """A budget of wall-clock seconds, with a tick for logging and one for checkpoints.

    Args:
        seconds: the budget.
        checkpoint: seconds between checkpoints.
    """

    def __init__(self, seconds: float, checkpoint: float = 75.0) -> None:
        self._start = self._checkpoint = time.monotonic()
        self._seconds, self._every = seconds, checkpoint

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def done(self) -> float:
        """The share of the budget that is used, at most 1."""
        return min(1.0, self.elapsed / self._seconds)

    def checkpoint_due(self) -> bool:
        """Whether it is time for one; asking resets it."""
        if time.monotonic() - self._checkpoint < self._every:
            return False
        self._checkpoint = time.monotonic()
        return True


class Log:
    """Losses by step, printed and kept as JSON.

    Args:
        file: rewritten at each entry.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.entries: list[dict[str, float]] = []

    def add(self, **values: float) -> None:
        """Keep one entry."""
        self.entries.append({name: round(float(value), 5) for name, value in values.items()})
        print(self.entries[-1], flush=True)
        self._file.write_text(json.dumps(self.entries) + "\n", encoding="utf-8")
