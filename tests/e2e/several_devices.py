"""The service with two simulated devices, a process each: `bentoml serve tests.e2e.several_devices:Sana`."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import service
from service import Sana, SanaService

__all__ = ["Sana"]

_to_asgi = SanaService.to_asgi


def _serve(self: SanaService, is_main: bool = True) -> Any:
    """Only the worker makes an application."""
    from sana_service import runtime
    from tests.performance.drawing import DrawingDevice

    patch.object(runtime, "resolve_devices", return_value=["simulated:0", "simulated:1"]).start()
    patch.object(runtime, "ServiceDevice", DrawingDevice).start()
    return _to_asgi(self, is_main)


service.SanaService.to_asgi = _serve  # type: ignore[method-assign]
