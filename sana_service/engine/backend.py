"""Which way one device's modules run: the plain one, or on a CUDA device kernels and captured graphs.

The engine's stages know only the plain interfaces. A module that the kernels do not fit keeps the plain way, so every
checkpoint that loads can be served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from sana_service.cuda_graph import URGENT, Pool
from sana_service.engine.bins import nearest_bin
from sana_service.engine.gate import MemoryGate
from sana_service.engine.transformer import SanaForward

if TYPE_CHECKING:
    from sana_service.engine.fused.decoder import FusedDecoder
    from sana_service.engine.fused.text import FusedTextEncoder
    from sana_service.models.checkpoint import Models
    from sana_service.models.names import ModelName, Precision

_LOG = logging.getLogger("sana.engine")

HOT_SIZES = ((1024, 1024), (3840, 2160))
"""Requested sizes whose bins are captured before the device takes jobs: the square one and the default."""

DEFAULT_GRAPH_BYTES = 4 * 2**30
"""Budget for the graphs of one device where none is given; a tenth of its memory where that is less."""

OLDEST_CAPABILITY = (8, 0)
"""Of a GPU that the kernels compile for: Ampere has bfloat16 and Triton's support."""

OLDEST_FP8_CAPABILITY = (8, 9)
"""Of a GPU with 8-bit matrix products: Ada."""

Decode = Callable[[torch.Tensor], torch.Tensor]
"""Scaled latents (n, channels, h, w) to pictures (n, 3, 32 h, 32 w) float32, about -1 to 1."""


class UnsupportedPrecision(ValueError):
    """A device or a checkpoint cannot be run in the precision that was asked for."""


class Backend:
    """The modules of one device; each part is used by one thread.

    Args:
        models: on their device.
        gate: of the device's memory, which captures pass like any other work.
        graph_bytes: what captured graphs may hold of the device's memory; 0 for none, None for a default by its size.
        precision: of the transformers.

    Raises:
        UnsupportedPrecision: fp8, and a part of it cannot be had.
    """

    def __init__(
        self, models: Models, gate: MemoryGate, *, graph_bytes: int | None = None, precision: Precision = "exact"
    ) -> None:
        if precision == "fp8":
            require_fp8(models.device)
        self._models = models
        self._gate = gate
        self.text: FusedTextEncoder | None = None
        self.forwards: dict[ModelName, SanaForward] = {}
        self._decoders: dict[int, FusedDecoder] = {}
        self._capturer: Any = None
        if models.device.type == "cuda" and _runs_kernels(models.device):
            self._fuse(graph_bytes, precision)
        for name, checkpoint in models.checkpoints.items():
            if name not in self.forwards:
                if precision != "exact":
                    raise UnsupportedPrecision(f"{checkpoint.name}: only fused transformers run in {precision}")
                self.forwards[name] = SanaForward(checkpoint.transformer)

    def _fuse(self, graph_bytes: int | None, precision: Precision) -> None:
        """Take the fused way for each module that fits it."""
        from sana_service.engine.fused import decoder, text, transformer
        from sana_service.engine.graphs import Capturer

        models = self._models
        if graph_bytes is None:
            memory = torch.cuda.get_device_properties(models.device).total_memory
            graph_bytes = min(DEFAULT_GRAPH_BYTES, memory // 10)
        if graph_bytes:
            self._capturer = Capturer(models.device, graph_bytes, self._gate)

        def new_pool(priority: int) -> Pool | None:
            return None if self._capturer is None else self._capturer.new_pool(priority)

        if text.can_fuse(models.text_encoder):
            self.text = text.FusedTextEncoder(models.text_encoder, self._capturer, new_pool(URGENT))
        denoising = new_pool(0)
        for name, checkpoint in models.checkpoints.items():
            if transformer.can_fuse(checkpoint.transformer):
                self.forwards[name] = transformer.FusedForward(
                    checkpoint.transformer, self._capturer, denoising, precision=precision
                )
            else:
                _LOG.warning("%s: its transformer has no fused form and runs as the library does", checkpoint.name)
        decoding = new_pool(URGENT)
        for checkpoint in models.checkpoints.values():
            if id(checkpoint.vae) not in self._decoders:
                self._decoders[id(checkpoint.vae)] = decoder.FusedDecoder(checkpoint.vae, self._capturer, decoding)

    def decoder(self, model: ModelName) -> Decode:
        """A model's VAE."""
        vae = self._models.checkpoints[model].vae
        return self._decoders.get(id(vae)) or plain_decoder(vae)

    def prepare(self, batch_cells: Mapping[ModelName, int]) -> None:
        """Capture what most requests will ask for; returns when that is done. Blocks.

        Args:
            batch_cells: most latent cells of one forward pass, by model.
        """
        if self._capturer is None:
            return
        with torch.inference_mode(), torch.cuda.device(self._models.device):
            for name, checkpoint in self._models.checkpoints.items():
                forward: Any = self.forwards[name]
                if hasattr(forward, "capture"):
                    self._prepare_forward(name, forward, batch_cells[name])
                vae: Any = self._decoders[id(checkpoint.vae)]
                for tall, wide in self._hot_shapes(name):
                    vae.capture(tall, wide)
            if self.text is not None:
                self.text.capture()
        torch.cuda.empty_cache()
        _LOG.info("%s: graphs hold %.1f GiB", self._models.device, self._capturer.used_bytes() / 2**30)

    def _hot_shapes(self, name: ModelName) -> list[tuple[int, int]]:
        config = self._models.checkpoints[name].transformer.config
        bins = [nearest_bin(width, height, config.sample_size) for width, height in HOT_SIZES]
        return [(one.height // 32, one.width // 32) for one in bins]

    def _prepare_forward(self, name: ModelName, forward: Any, cells: int) -> None:
        # Only the base model is guided by a second row.
        rows_per_image = 2 if name == "base" else 1
        shapes = self._hot_shapes(name)
        most = max(max(1, cells // (tall * wide)) for tall, wide in shapes)
        forward.reserve(most * rows_per_image)
        for tall, wide in shapes:
            for images in range(1, max(1, cells // (tall * wide)) + 1):
                forward.capture(images * rows_per_image, tall, wide)

    def stop(self) -> None:
        """Capture no more."""
        if self._capturer is not None:
            self._capturer.stop()


def require_fp8(device: torch.device) -> None:
    """Nothing, where a device has 8-bit matrix products.

    Raises:
        UnsupportedPrecision: it has none.
    """
    needed = ".".join(map(str, OLDEST_FP8_CAPABILITY))
    if device.type != "cuda":
        raise UnsupportedPrecision(f"fp8 needs a GPU of compute capability {needed} or newer, not {device}")
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_FP8_CAPABILITY:
        has = ".".join(map(str, capability))
        raise UnsupportedPrecision(f"fp8 needs a GPU of compute capability {needed} or newer; {device} has {has}")


def _runs_kernels(device: torch.device) -> bool:
    """Whether Triton is there, has its compiler, and knows the device; said once where not."""
    try:
        if torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
            raise RuntimeError(f"its compute capability is below {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}")
        from sana_service.engine.kernels.norms import rms_norm

        with torch.cuda.device(device):
            ones = torch.ones(1, 64, dtype=torch.bfloat16, device=device)
            rms_norm(ones, ones[0], None, 1e-6)
            torch.cuda.synchronize()
    except Exception as error:
        _LOG.warning("%s runs as the libraries do, without kernels: %s", device, str(error).partition("\n")[0])
        return False
    return True


def plain_decoder(vae: Any) -> Decode:
    """The VAE's own."""

    def decode(latents: torch.Tensor) -> torch.Tensor:
        pictures: torch.Tensor = vae.decode(latents, return_dict=False)[0]
        return pictures.float()

    return decode
