"""What the stages of a job do on one device: text, denoise, decode, safety, resize.

Each method is called by one thread of the device's loop. Nothing here knows the order of things, queues or time.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sana_service.cuda_graph import URGENT
from sana_service.engine.backend import Backend
from sana_service.engine.bins import Size, crop_box, nearest_bin
from sana_service.engine.costs import is_guided
from sana_service.engine.decode import LatentDecoder, render
from sana_service.engine.denoise import Denoiser, DenoiseRow
from sana_service.engine.gate import MemoryGate
from sana_service.engine.observer import PREVIEW_SIDE_PIXELS, Preview
from sana_service.engine.text import PromptEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sana_service.engine.flight import Flight, Shot
    from sana_service.engine.job import Job
    from sana_service.models.checkpoint import Models
    from sana_service.models.names import ModelName, Precision
    from sana_service.safety import SafetyModel


_LOG = logging.getLogger("sana.engine")


@dataclass(frozen=True)
class StepTime:
    """What a step took, told once it is done.

    Args:
        model: whose it was.
        rows: of the transformer, images times forward passes.
        seconds: on the device.
    """

    model: ModelName
    rows: int
    seconds: float


@dataclass(frozen=True)
class _Launched:
    """A step that a GPU may still work on."""

    model: ModelName
    rows: int
    start: torch.cuda.Event
    end: torch.cuda.Event

    def wait(self) -> StepTime:
        self.end.synchronize()
        return StepTime(self.model, self.rows, self.start.elapsed_time(self.end) / 1000)


class Stages:
    """Runs stages with one set of models.

    Args:
        models: on the device of this loop.
        safety: classifies pictures, or None.
        nsfw_threshold: probability strictly above which a picture is flagged.
        graph_bytes: what captured CUDA graphs may hold of the device's memory; see `Backend`.
        precision: of the transformers.

    Raises:
        UnsupportedScheduler: a checkpoint's scheduler cannot be run row by row.
        UnsupportedPrecision: the device or a checkpoint cannot be run in that precision.
    """

    def __init__(
        self,
        models: Models,
        safety: SafetyModel | None,
        nsfw_threshold: float,
        *,
        graph_bytes: int | None = None,
        precision: Precision = "exact",
    ) -> None:
        self._models = models
        self._safety = safety
        self._nsfw_threshold = nsfw_threshold
        self.gate = MemoryGate()
        self._backend = Backend(models, self.gate, graph_bytes=graph_bytes, precision=precision)
        self._prompts = PromptEncoder(models.tokenizer, models.text_encoder, fused=self._backend.text)
        self._denoiser = Denoiser(models, self._backend.forwards)
        checkpoints = models.checkpoints.items()
        self._decoders = {name: LatentDecoder(one.vae, self._backend.decoder(name)) for name, one in checkpoints}
        self._sample_sizes: dict[ModelName, int] = {
            name: one.transformer.config.sample_size for name, one in checkpoints
        }
        self._ahead: _Launched | None = None
        self._tiled: set[torch.Size] = set()

    @property
    def device(self) -> torch.device:
        return self._models.device

    def prepare(self, batch_cells: Mapping[ModelName, int]) -> None:
        """Make ready what most requests need, before the first comes. Blocks.

        Args:
            batch_cells: most latent cells of one forward pass, by model.
        """
        # Kernels are launched on the current device, wherever their tensors are.
        here = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with torch.inference_mode(), here:
            self._prompts.prepare()
            self._backend.prepare(batch_cells)

    def close(self) -> None:
        """Begin nothing new in the background."""
        self._backend.stop()

    def new_stream(self, *, urgent: bool) -> torch.cuda.Stream | None:
        """A stream for one thread; None where the device has none.

        Args:
            urgent: its kernels start before those of streams that are not: short work does not queue behind long.
        """
        if self.device.type != "cuda":
            return None
        return torch.cuda.Stream(self.device, priority=URGENT if urgent else 0)  # type: ignore[no-untyped-call]

    def synchronize(self) -> None:
        """Wait for what the calling thread has asked of the device."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def release_memory(self) -> None:
        """Give back what is kept for speed alone."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def memory_bytes(self) -> dict[str, int]:
        """What a CUDA device's tensors hold, what the process holds, and the peak; empty elsewhere."""
        if self.device.type != "cuda":
            return {}
        return {
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
            "peak": torch.cuda.max_memory_allocated(self.device),
        }

    def bin_of(self, job: Job) -> Size:
        """The size that a job is drawn at."""
        return nearest_bin(job.width, job.height, self._sample_sizes[job.model])

    def begin(self, flight: Flight) -> list[DenoiseRow]:
        """All that is done once a job: its prompts' embeddings, and a row for each image, at its first noise."""
        self.encode_text(flight)
        return self.start_rows(flight)

    def encode_text(self, flight: Flight) -> None:
        """Prompt, and negative prompt where guidance reads it, to embeddings."""
        job = flight.job
        flight.positive = self._prompts.positive(job.prompt)
        flight.negative = self._prompts.negative(job.negative_prompt) if is_guided(job) else None

    def start_rows(self, flight: Flight) -> list[DenoiseRow]:
        """A row for each image, at its first noise."""
        return self._denoiser.rows(flight)

    def adopt(self, rows: Sequence[DenoiseRow]) -> None:
        """Take rows over from the thread that began them: the one that steps them calls this first.

        What a row lets go of may still be read on this thread's stream, and the allocator knows only the stream that
        it was made on.
        """
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device)
            for row in rows:
                for tensor in row.tensors():
                    tensor.record_stream(stream)

    def step(self, rows: Sequence[DenoiseRow]) -> list[StepTime]:
        """Advance rows of one key; all of them or, where it raises, none.

        A GPU still works on it when this returns, so that it never waits for the host: it is done at the latest with
        the next step, or `settle`. An error that a GPU tells so late is one that it does not recover from.

        Returns:
            The steps that have ended since the last call, the oldest first.
        """
        model, forwards = rows[0].key.model, len(rows) * rows[0].key.forwards
        if self.device.type != "cuda":
            started = time.perf_counter()
            self._denoiser.step(rows)
            return [StepTime(model, forwards, time.perf_counter() - started)]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        self._denoiser.step(rows)
        end.record()
        before, self._ahead = self._ahead, _Launched(model, forwards, start, end)
        return [] if before is None else [before.wait()]

    def settle(self) -> list[StepTime]:
        """Wait for the step that is under way, if any; what it took."""
        last, self._ahead = self._ahead, None
        return [] if last is None else [last.wait()]

    def forget_batch(self) -> None:
        """Let go of what the last batch left for the next one."""
        self._denoiser.forget()

    def decode(self, shot: Shot, *, tiled: bool = False) -> torch.Tensor:
        """(3, height, width) float32 in [0, 1] at the bin's size.

        Args:
            tiled: in tiles; where that succeeds, ever after for this size.

        Raises:
            NotFinite: latents or pixels are NaN or infinite.
        """
        decode, shape = self._decoders[shot.flight.job.model], shot.latents.shape
        image = decode(shot.latents[None], tiled=tiled or shape in self._tiled)[0]
        if tiled and shape not in self._tiled:
            self._tiled.add(shape)
            _LOG.warning(
                "%s has no memory to decode %dx%d whole: tiles from now on", self.device, image.shape[2], image.shape[1]
            )
        return image

    def flag(self, job: Job, image: torch.Tensor) -> bool:
        """Whether a picture must not be shown."""
        if self._safety is None or not job.check_safety:
            return False
        (probability,) = self._safety.probabilities(image[None])
        # Not "greater than": a probability that is no number must not let a picture through.
        return not probability <= self._nsfw_threshold

    def resize(self, shot: Shot, image: torch.Tensor) -> None:
        """Write the picture's pixels at the requested size, black where it is flagged."""
        flight = shot.flight
        target = flight.pixels[shot.image]
        if flight.flagged[shot.image]:
            target.fill(0)
            return
        requested = Size(flight.job.width, flight.job.height)
        self._download(render(image, crop_box(flight.size, requested), requested), target)

    def preview(self, shot: Shot) -> None:
        """Show the observer what an image would be if it ended here."""
        flight, observer = shot.flight, shot.flight.job.observer
        assert observer is not None
        assert shot.preview is not None
        job = flight.job
        image = self.decode(shot)
        scale = min(1.0, PREVIEW_SIDE_PIXELS / max(job.width, job.height))
        small = Size(max(1, round(job.width * scale)), max(1, round(job.height * scale)))
        pixels = np.zeros((small.height, small.width, 3), np.uint8)
        if not self.flag(job, image):
            self._download(render(image, crop_box(flight.size, Size(job.width, job.height)), small), pixels)
        observer.preview(Preview(shot.image, shot.preview, pixels))

    def _download(self, pixels: torch.Tensor, target: np.ndarray) -> None:
        """Copy to the host; from a GPU through pinned memory, so that no other stream waits for it."""
        if pixels.device.type == "cuda":
            pinned = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
            pinned.copy_(pixels, non_blocking=True)
            self.synchronize()
            # torch's own copy would wake a thread on each core, and those spin for a while after it.
            np.copyto(target, pinned.numpy())
        else:
            torch.from_numpy(target).copy_(pixels)
