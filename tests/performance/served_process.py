"""A process of the service at a port that others may have, too: `python -m tests.performance.served_process PORT`.

The kernel shares the connections out between the processes of a port. With `SIMULATED_DEVICES` there are so many
devices that take the time that an H100 takes at saturation, compute nothing, and draw one noisy picture again and
again: what a request costs the host (HTTP, BentoML, queue, encoding, storage) is real, and what a process bears is seen
where no machine with so many GPUs is to be had. Without it the service is as `SANA_DEVICES` and `SANA_MODELS` say.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from typing import Any, cast
from unittest.mock import patch

import torch
import uvicorn
from torch.nn.functional import interpolate

from sana_service import runtime
from sana_service.engine import engine as engine_module
from sana_service.engine.flight import Shot
from sana_service.engine.stages import Stages, StepTime
from sana_service.models.load import load_models
from service import Sana
from tests.engine.simulated import LIMITS, Row, SimulatedStages

COUNT = "SIMULATED_DEVICES"

STEP_SECONDS = {"base": 0.052, "sprint": 0.1}
"""Of a batch as large as `LIMITS` allows."""
IMAGE_SECONDS = {"base": 0.018, "sprint": 0.032}


class DrawingStages(SimulatedStages):
    """A simulated device whose pictures have pixels."""

    def prepare(self, _: object) -> None: ...

    def close(self) -> None: ...

    def memory_bytes(self) -> dict[str, int]:
        return {}

    def step(self, rows: list[Row]) -> list[StepTime]:
        self.step_seconds = STEP_SECONDS[rows[0].key.model]
        return super().step(rows)

    def decode(self, shot: Shot, *, tiled: bool = False) -> torch.Tensor:
        self.image_seconds = IMAGE_SECONDS[shot.flight.job.model]
        return super().decode(shot, tiled=tiled)

    def resize(self, shot: Shot, image: torch.Tensor) -> None:
        target = shot.flight.pixels[shot.image]
        torch.from_numpy(target).copy_(_picture(*target.shape[:2]))


@cache
def _picture(height: int, width: int) -> torch.Tensor:
    """Noise of many scales, which a JPEG needs about as many bytes for as for a photograph."""
    noise, random = torch.zeros(1, 3, height, width), torch.Generator().manual_seed(7)
    for power in range(8):
        layer = torch.randn(1, 3, 8 << power, 8 << power, generator=random)
        noise += interpolate(layer, (height, width), mode="bilinear") / (power + 1)
    return (128 + 40 * noise[0]).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def _build(settings: Any, storage: Any, encoder: Any) -> Any:
    """`runtime.build_generation`, its devices exchanged."""
    count = int(os.environ[COUNT])
    loaded = load_models("bundled", "", "", None, None, "cpu", progress=False)

    def stages(*_: object, **__: object) -> Stages:
        return cast(Stages, DrawingStages())

    with (
        patch.object(runtime, "resolve_devices", return_value=["cpu"] * count),
        patch.object(runtime, "load_models", return_value=loaded),
        patch.object(runtime, "load_safety_model", return_value=None),
        patch.object(engine_module, "Stages", stages),
        patch.object(engine_module, "default_limits", return_value=LIMITS),
    ):
        return build_generation(settings, storage, encoder)


build_generation = runtime.build_generation


def main() -> None:
    if COUNT in os.environ:
        runtime.build_generation = _build
    app = Sana.to_asgi()  # type: ignore[attr-defined]
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", int(sys.argv[1])))
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main()
