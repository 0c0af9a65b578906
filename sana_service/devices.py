"""How a device is built with the models that the settings name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sana_service.telemetry import configure_logging

if TYPE_CHECKING:
    from sana_service.engine.device import LocalDevice
    from sana_service.models.load import Kind
    from sana_service.settings import Settings


@dataclass(frozen=True)
class ServiceDevice:
    """One device of the service; a `DeviceSpec`.

    Args:
        name: "cpu", or such as "cuda:0".
        kind: where the models come from.
        settings: the operator's.
    """

    name: str
    kind: Kind
    settings: Settings

    def configure(self) -> None:
        """See `DeviceSpec`."""
        configure_logging(self.settings.log_format)

    def build(self) -> LocalDevice:
        """The device with its models and the safety model. Blocks.

        Raises:
            ModelLoadError: a checkpoint cannot be used.
            UnsupportedScheduler, UnsupportedPrecision: see `build_device`.
            ValueError: the safety model cannot be used.
        """
        import torch

        from sana_service.engine.device import build_device
        from sana_service.models.load import load_models
        from sana_service.safety import load_safety_model

        settings = self.settings
        if self.name.startswith("cuda"):
            # The host only launches, and threads that wait for a share of a copy take whole cores.
            torch.set_num_threads(1)
        models = load_models(
            self.kind,
            settings.base_model,
            settings.sprint_model,
            settings.base_revision,
            settings.sprint_revision,
            self.name,
        )
        graphs = settings.graph_memory_gb
        return build_device(
            models,
            load_safety_model(settings.safety_model, self.kind, self.name, capture=graphs != 0),
            settings.nsfw_threshold,
            graph_bytes=None if graphs is None else int(graphs * 2**30),
            precision=settings.precision,
        )
