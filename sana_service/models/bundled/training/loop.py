"""The loop that every stage runs: AdamW on a clock, averaged weights, the whole step in one CUDA graph.

A stage is given seconds rather than steps, so that it ends in time on any machine; the learning rate follows the clock,
and the card of the run records how many steps it was. On a CPU (tests) the same code runs without a graph.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

REPORT_SECONDS, CHECKPOINT_SECONDS = 5.0, 90.0


@dataclass(frozen=True)
class Plan:
    """How long and how fast.

    Args:
        seconds: of training, without what comes before and after.
        learning_rate: peak; reached after `warmup_steps`, then a half cosine to zero at the end.
        ema_decay: of the averaged weights, per step.
        max_steps: ends earlier (tests).
        warmup_steps: of linear warm-up.
    """

    seconds: float
    learning_rate: float
    ema_decay: float = 0.999
    max_steps: int = 10**9
    warmup_steps: int = 200


@dataclass
class Card:
    """What is kept of a run.

    Args:
        stage: its name.
        device: the machine's name for it.
        curve: [step, seconds, loss] every few seconds.
        results: measurements, stage by stage.
    """

    stage: str
    device: str
    plan: dict[str, float]
    steps: int = 0
    setup_seconds: float = 0.0
    train_seconds: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    results: dict[str, object] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `<stage>.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.stage}.json").write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def output_folder() -> Path:
    """Where a stage leaves its files: `$OUT`, or `build/bundled`."""
    return Path(os.environ.get("OUT") or "build/bundled")


def device() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """Its name for the card."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def optimise(
    step_loss: Callable[[], Tensor],
    modules: Sequence[torch.nn.Module],
    averaged: Sequence[torch.nn.Module],
    plan: Plan,
    card: Card,
    *,
    each_step: Callable[[float, int], None] = lambda progress, step: None,
    checkpoint: Callable[[], None] = lambda: None,
) -> None:
    """Train `modules` in place and keep the exponential moving average of their weights in `averaged`.

    Args:
        step_loss: draws a batch and returns its loss; must be capturable, all randomness on the device's generator.
        modules: whose parameters are trained.
        averaged: copies of them.
        plan: see there.
        card: receives curve, steps and seconds.
        each_step: called before each step with the share of the time gone and the step's number.
        checkpoint: called every minute and a half, and not at the end.
    """
    where = next(modules[0].parameters()).device
    cuda = where.type == "cuda"
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    shadows: list[Tensor] = [
        p for module, copy in zip(modules, averaged, strict=True)
        for p, original in zip(copy.parameters(), module.parameters(), strict=True) if original.requires_grad
    ]  # fmt: skip
    rate = torch.zeros((), device=where)
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=cuda, capturable=cuda
    )

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = step_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(shadows, [p.detach() for p in parameters], 1 - float(plan.ema_decay))
        return loss.detach()

    replay = _captured(step) if cuda else step
    with torch.no_grad():
        torch._foreach_copy_(shadows, [p.detach() for p in parameters])
    start = last_report = last_checkpoint = time.perf_counter()
    losses: list[Tensor] = []
    while card.steps < plan.max_steps:
        now = time.perf_counter()
        progress = max((now - start) / plan.seconds, card.steps / plan.max_steps)
        if progress >= 1:
            break
        rate.fill_(
            plan.learning_rate * min((card.steps + 1) / plan.warmup_steps, 0.5 + 0.5 * math.cos(math.pi * progress))
        )
        each_step(progress, card.steps)
        losses.append(replay().clone())
        card.steps += 1
        if card.steps % 20 == 0 and cuda:
            torch.cuda.synchronize()  # the clock must not run ahead of the device
        if now - last_report > REPORT_SECONDS or card.steps == 1:
            loss = float(torch.stack(losses).mean())
            card.curve.append((card.steps, round(now - start, 1), round(loss, 5)))
            print(f"{card.stage} step {card.steps} {now - start:.0f}s loss {loss:.4f}", flush=True)
            losses, last_report = [], now
        if now - last_checkpoint > CHECKPOINT_SECONDS:
            checkpoint()
            last_checkpoint = time.perf_counter()
    if cuda:
        torch.cuda.synchronize()
    card.train_seconds = round(time.perf_counter() - start, 1)


def _captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step as one CUDA graph, after warm-up steps (learning rate 0) on a side stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            loss = step()
    except RuntimeError as error:  # a slower run is worth more than none
        print(f"no CUDA graph: {error}", flush=True)
        torch.cuda.synchronize()
        return step

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay
