"""One request, from the validated model to the response model.

    request --> job --> artifact (engine) --> encoded images (images) --> stored URLs --> response

Does no device work and no encoding of its own; it never blocks the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import secrets
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sana_service import __version__, tracing
from sana_service.contract.errors import DeadlinePassed, ServiceError, Unavailable, from_engine
from sana_service.contract.fal import StartTimeout
from sana_service.contract.schemas import BaseInput, ImageFile, Output, SanaOutput, SanaSprintOutput
from sana_service.contract.sizes import resolve_size
from sana_service.contract.styles import apply_style
from sana_service.engine.errors import EngineError
from sana_service.engine.job import Artifact, Job
from sana_service.images import EncodedImage, Encoder, data_uri
from sana_service.metadata import ImageMetadata
from sana_service.models.names import ModelName
from sana_service.storage import Storage, StorageError
from sana_service.telemetry import get_logger, request_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from sana_service.engine.engine import Engine
    from sana_service.engine.observer import Observer
    from sana_service.settings import Settings

logger = get_logger("generation")

Result = TypeVar("Result")

_OUTPUTS: dict[ModelName, type[Output]] = {"base": SanaOutput, "sprint": SanaSprintOutput}
_SAMPLERS: dict[ModelName, str] = {"base": "DPM++ 2M", "sprint": "SCM"}
_SEEDS = 2**64
_WITHDRAW_SECONDS = 5.0
_RANDOM_SEED_BITS = 32


@dataclass(frozen=True)
class Extras:
    """What a route may want besides the request's own fields.

    Args:
        observer: is told how far the work is.
        start_within_seconds: give up where the engine has not begun by then.
        jpeg_quality: 1 to 100; None for the service's own.
        settle: is given the output before it is final; where it raises, the images are deleted: `Superseded`, or
            another `ServiceError`.
        deadline: `time.monotonic()` by which it must be done; None for the operator's limit from now on.
        lifetime_seconds: after which the images are deleted; None for the operator's.
    """

    observer: Observer | None = None
    start_within_seconds: float | None = None
    jpeg_quality: int | None = None
    settle: Callable[[Output], Awaitable[None]] | None = None
    deadline: float | None = None
    lifetime_seconds: float | None = None


@dataclass(frozen=True)
class Generation:
    """What a request needs on its way; one for the process.

    Args:
        engine: draws.
        encoder: makes files of pixels.
        storage: keeps files.
        settings: the operator's.
        model_names: what each model is called in an image's metadata.
    """

    engine: Engine
    encoder: Encoder
    storage: Storage
    settings: Settings
    model_names: dict[ModelName, str]

    async def run(self, model: ModelName, request: BaseInput, base_url: str, extras: Extras | None = None) -> Output:
        """Generate, encode and store the images of a request.

        Args:
            base_url: scheme and host under which `/files/` is reached.

        Raises:
            ServiceError: the request cannot be served; nothing of it is left in the storage.
        """
        extras = extras or Extras()
        deadline = extras.deadline or time.monotonic() + self.settings.request_timeout_seconds
        job = self._job(model, request, deadline, tracing.watched(extras.observer))
        if self.settings.log_prompts:
            logger.info("prompt %r, negative prompt %r", request.prompt, request.negative_prompt)
        artifact = await self._draw(job, extras.start_within_seconds)
        timings = dict(artifact.timings)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                with _timed(timings, "encode"):
                    encoded = await self.encoder.encode_all(
                        artifact.pixels, request.output_format, self._metadata(request, job), extras.jpeg_quality
                    )
                with _timed(timings, "store"):
                    files = await self._publish(encoded, request.sync_mode, base_url)
        except TimeoutError as error:
            raise DeadlinePassed("The request's deadline passed before the image was stored.") from error
        output = self._output(request, job, artifact, files, timings)
        if extras.settle is not None:
            await self._settle(output, extras.settle)
        return output

    def _job(self, model: ModelName, request: BaseInput, deadline: float, observer: Observer | None) -> Job:
        size = resolve_size(request.image_size)
        prompt, negative_prompt = apply_style(request.style_name, request.prompt, request.negative_prompt)
        seed = request.seed if request.seed is not None else secrets.randbits(_RANDOM_SEED_BITS)
        return Job(
            model=model,
            prompt=prompt,
            negative_prompt=negative_prompt,
            width=size.width,
            height=size.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            seeds=tuple((seed + i) % _SEEDS for i in range(request.num_images)),
            check_safety=request.enable_safety_checker,
            deadline=deadline,
            request_id=request_id.get(),
            observer=observer,
        )

    async def _draw(self, job: Job, start_within_seconds: float | None) -> Artifact:
        try:
            drawing = asyncio.wrap_future(self.engine.submit(job))
            if start_within_seconds is not None:
                await asyncio.wait({drawing}, timeout=start_within_seconds)
                if not drawing.done() and self.engine.position(job) is not None:
                    drawing.cancel()
                    raise StartTimeout
            return await drawing
        except asyncio.CancelledError:
            job.cancel()
            raise
        except EngineError as error:
            raise from_engine(error) from error

    def _metadata(self, request: BaseInput, job: Job) -> list[ImageMetadata | None]:
        if not self.settings.embed_metadata:
            return [None] * len(job.seeds)
        return [
            ImageMetadata(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                model=job.model,
                model_name=self.model_names[job.model],
                sampler=_SAMPLERS[job.model],
                num_inference_steps=job.num_inference_steps,
                guidance_scale=job.guidance_scale,
                seed=seed,
                width=job.width,
                height=job.height,
                style_name=request.style_name,
                version=__version__,
            )
            for seed in job.seeds
        ]

    async def _publish(self, images: list[EncodedImage], inline: bool, base_url: str) -> list[ImageFile]:
        if inline:
            uris = await asyncio.gather(*(asyncio.to_thread(data_uri, image) for image in images))
            names = [f"{secrets.token_hex(16)}.{image.extension}" for image in images]
            return [_file(image, name, uri) for image, name, uri in zip(images, names, uris, strict=True)]
        puts = [_in_thread(self.storage.put, image.data, image.extension) for image in images]
        try:
            # Not cancelled with this: a put would go on in its thread, and its file would stay.
            done, others = await asyncio.wait(puts, return_when=asyncio.FIRST_EXCEPTION)
            # Where some are not done one of the others has failed.
            names = [put.result() for put in (done if others else puts)]
        except (StorageError, asyncio.CancelledError) as error:
            # Not for ever: a storage that hangs would hold the request beyond its deadline.
            await asyncio.wait({asyncio.ensure_future(self._withdraw(puts))}, timeout=_WITHDRAW_SECONDS)
            if isinstance(error, StorageError):
                logger.error("storing an image failed: %s", error)
                raise Unavailable("The image storage does not answer, retry later.") from error
            raise
        base = self.settings.public_url or base_url
        return [_file(image, name, f"{base}/files/{name}") for image, name in zip(images, names, strict=True)]

    async def _settle(self, output: Output, settle: Callable[[Output], Awaitable[None]]) -> None:
        """Shielded, for the client may leave meanwhile: what is kept of the answer and its images stay together."""

        async def settled() -> None:
            try:
                await settle(output)
            except ServiceError:
                for image in output.images:
                    with contextlib.suppress(StorageError):
                        await asyncio.to_thread(self.storage.delete, image.file_name)
                raise

        task = asyncio.ensure_future(settled())
        # Where the client has left nobody else asks how it ended.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    async def _withdraw(self, puts: Sequence[asyncio.Future[str]]) -> None:
        """Delete what was stored for a request that failed; expiry would find it later anyway."""
        for outcome in await asyncio.gather(*puts, return_exceptions=True):
            if isinstance(outcome, str):
                with contextlib.suppress(StorageError):
                    await asyncio.to_thread(self.storage.delete, outcome)

    def _output(
        self, request: BaseInput, job: Job, artifact: Artifact, files: list[ImageFile], timings: dict[str, float]
    ) -> Output:
        return _OUTPUTS[job.model](
            images=files,
            seed=job.seeds[0],
            has_nsfw_concepts=list(artifact.flagged),
            prompt=request.prompt,
            timings={stage: round(seconds, 6) for stage, seconds in timings.items()},
        ).denoised_with(artifact.batch_images, self.settings.precision)


def output_model(model: ModelName) -> type[Output]:
    """The response model of an endpoint."""
    return _OUTPUTS[model]


def _in_thread(function: Callable[..., Result], *arguments: object) -> asyncio.Future[Result]:
    """`asyncio.to_thread` without the task around it."""
    call = partial(contextvars.copy_context().run, function, *arguments)
    return asyncio.get_running_loop().run_in_executor(None, call)


def _file(image: EncodedImage, name: str, url: str) -> ImageFile:
    return ImageFile(
        url=url,
        content_type=image.content_type,
        file_name=name,
        file_size=len(image.data),
        width=image.width,
        height=image.height,
    )


@contextlib.contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    tracing.begins(stage)
    started = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - started
