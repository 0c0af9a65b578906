"""The life of a worker process: load, warm up, serve, drain.

Models load in the background, so that the process answers its probes meanwhile. A load that fails
ends the process with one line and a non-zero code: nothing is gained by a server that never
becomes ready, and the orchestrator shows what an exit code says.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from sana_service.callers import CallerLimit, caller
from sana_service.contract.answers import answer_headers, units_of
from sana_service.contract.errors import Unavailable
from sana_service.contract.idempotency import REPLAYED_HEADER
from sana_service.contract.schemas import BaseInput, Output, SprintInput, TextToImageInput
from sana_service.devices import ServiceDevice
from sana_service.engine.engine import Engine
from sana_service.engine.errors import NotReady
from sana_service.engine.processes.device import start_devices
from sana_service.generation import Extras, Generation, output_model
from sana_service.images import Encoder
from sana_service.jobs.keys import Answer
from sana_service.jobs.once import Once, Settle, fingerprint, key_name, open_keys
from sana_service.jobs.record import StoreError
from sana_service.jobs.service import JobService
from sana_service.jobs.store import default_url, open_store
from sana_service.metrics import REGISTRY, START_SECONDS, LiveState, count_answer, count_request
from sana_service.models.load import resolve_devices, resolve_kind
from sana_service.outcomes import outcome_of, reason_of
from sana_service.startup import load_signer
from sana_service.storage import Storage, StorageError
from sana_service.telemetry import get_logger
from sana_service.tracing import open_tracing

if TYPE_CHECKING:
    from sana_service.engine.device import Device
    from sana_service.engine.observer import Observer
    from sana_service.models.names import ModelName
    from sana_service.settings import Settings

logger = get_logger("runtime")

SignalHandler = Callable[[int, FrameType | None], object]

_SWEEP_SECONDS = 30.0
_BLOCKING_THREADS = 32
_WARM_UP_PROMPT = "a red circle on a white background"


class Runtime:
    """Owns the engine, the encoder and the storage of a worker."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        self._settings = settings
        self._storage = storage
        self._encoder = Encoder(signer=load_signer(settings))
        self._generation: Generation | None = None
        self._ready = False
        self._draining = False
        self._callers = CallerLimit(settings.max_concurrent_per_key)
        self.tracing = open_tracing(os.environ, prompts=settings.trace_prompts)
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()
        REGISTRY.register(
            LiveState(
                lambda: self.ready, self._engine, self._encoder, settings.max_queue, max_work=settings.max_queue_work
            )
        )
        self.jobs = JobService(
            settings,
            open_store(settings.jobs_url or default_url(settings.storage_url)),
            generate=self._generate_job,
            accepting=lambda: self.ready,
            is_open=lambda: not self._draining,
            forget=self._forget,
        )

        self._once = Once(open_keys(settings.jobs_url), settings.file_ttl_seconds)

    @property
    def ready(self) -> bool:
        """Whether a warm-up made an image on each endpoint, and requests are still accepted."""
        return self._ready and not self._draining and self.alive

    @property
    def alive(self) -> bool:
        """Whether the process can still recover by itself."""
        return self._generation is None or self._generation.engine.healthy

    def _engine(self) -> Engine | None:
        return self._generation.engine if self._generation is not None else None

    async def start(self) -> None:
        """Begin to load; returns at once."""
        # The default has a thread for each core and four: a storage that hangs would stop all that uses threads.
        threads = ThreadPoolExecutor(_BLOCKING_THREADS, thread_name_prefix="blocking")
        asyncio.get_running_loop().set_default_executor(threads)
        self._drain_on_signals()
        if self._settings.api_keys_file is None:
            logger.warning("no API keys are configured (SANA_API_KEYS_FILE): the service is open to everybody")
        self._spawn(self._load())
        self._spawn(self._sweep())
        self._spawn(self.jobs.run())

    async def stop(self) -> None:
        """Stop the engine; whatever still runs is cancelled."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.jobs.close()
        self._once.close()
        if self._generation is not None:
            await asyncio.to_thread(self._generation.engine.stop)
        self._encoder.close()
        await asyncio.to_thread(self.tracing.close)

    @property
    def encoder(self) -> Encoder:
        """Makes files of pixels."""
        return self._encoder

    async def generate(
        self, model: ModelName, request: BaseInput, base_url: str, extras: Extras | None = None
    ) -> Output:
        """Serve one request.

        Raises:
            ServiceError: the request cannot be served.
        """
        with self._serving(model):
            return await self._draw(model, request, base_url, extras or Extras())

    @contextlib.contextmanager
    def _serving(self, model: ModelName) -> Iterator[None]:
        """Holds off the end of the process and takes the caller's place; counts how it ended, where not with images."""
        self._in_flight += 1
        self._idle.clear()
        try:
            with self._callers.place(partial(self._predicted_wait, model)):
                yield
        except BaseException as error:
            outcome, reason = outcome_of(error), reason_of(error)
            count_request(model, outcome, reason)
            logger.info("ended: %s %s, %s", model, outcome, reason)
            raise
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    def _predicted_wait(self, model: ModelName) -> float:
        return self._generation.engine.predicted_wait(model) if self._generation is not None else 0.0

    async def _draw(self, model: ModelName, request: BaseInput, base_url: str, extras: Extras) -> Output:
        """Images, counted as a completed request's."""
        if self._generation is None or not self.ready:
            why = "The service drains." if self._draining else "The models are still loading."
            raise Unavailable(why) from NotReady(why)
        started = time.perf_counter()
        with self.tracing.generation(model, self._generation.model_names[model], request) as generated:
            if extras.settle is not None or extras.lifetime_seconds is not None:
                extras = replace(extras, settle=partial(self._settle, extras))
            output = await self._generation.run(model, request, base_url, extras)
            generated.completed(output)
        count_answer(model, request, output, units_of(request), time.perf_counter() - started)
        logger.info("ended: %s completed, %d units", model, units_of(request))
        return output

    async def _settle(self, extras: Extras, output: Output) -> None:
        """Register the end of the images' life, if the client gave one, and keep the answer for repetitions."""
        stored = [image.file_name for image in output.images if not image.url.startswith("data:")]
        if extras.lifetime_seconds is not None and stored:
            try:
                await self.jobs.delete_later(stored, extras.lifetime_seconds)
            except StoreError as error:
                logger.error("the images' lifetime could not be registered: %s", error)
                raise Unavailable("The store of lifetimes does not answer, retry later.") from error
        if extras.settle is not None:
            await extras.settle(output)

    async def answer(
        self, key: str | None, model: ModelName, request: BaseInput, base_url: str, extras: Extras
    ) -> tuple[Output, dict[str, str]]:
        """The output and headers of a request; with a key that was answered before, those of that time.

        Raises:
            ServiceError: the request cannot be served, or the key came with another one.
        """
        if key is None:
            output = await self.generate(model, request, base_url, extras)
            return output, answer_headers(request, output)
        made: list[Output] = []
        deadline = time.monotonic() + self._settings.request_timeout_seconds
        lifetime_seconds = math.inf if extras.lifetime_seconds is None else extras.lifetime_seconds

        async def work(settle: Settle) -> None:
            async def keep(output: Output) -> None:
                await settle(Answer(output.model_dump_json(), answer_headers(request, output)), lifetime_seconds)

            made.append(await self._draw(model, request, base_url, replace(extras, settle=keep, deadline=deadline)))

        name = key_name(caller.get(), key)
        with self._serving(model):
            kept = await self._once.serve(name, fingerprint(model, request.model_dump_json()), work, deadline)
        if kept is None:
            return made[0], answer_headers(request, made[0])
        count_request(model, "replayed")
        logger.info("ended: %s replayed", model)
        return output_model(model).model_validate_json(kept.body), {**kept.headers, REPLAYED_HEADER: "true"}

    async def _generate_job(self, model: ModelName, request: BaseInput, base_url: str, observer: Observer) -> Output:
        return await self.generate(model, request, base_url, Extras(observer=observer))

    def _forget(self, name: str) -> None:
        """Delete a file whose lifetime is over; the storage's own expiry is behind it."""
        try:
            self._storage.delete(name)
        except StorageError as error:
            logger.warning("an expired file could not be deleted: %s", error)

    async def _load(self) -> None:
        started = time.monotonic()
        try:
            await asyncio.to_thread(self._storage.check)
            self._generation = await asyncio.to_thread(build_generation, self._settings, self._storage, self._encoder)
            await self._warm_up(self._generation)
        except Exception as error:
            reason = str(error) or type(error).__name__
            logger.critical("start failed: %s", " ".join(reason.split()))
            logger.debug("start failed", exc_info=error)
            logging.shutdown()
            # Only an exit without clean-up reaches the supervisor: SystemExit here ends a task.
            os._exit(1)
        # A full collection walks every module of torch: a quarter of a second without an answer.
        gc.collect()
        gc.freeze()
        self._ready = True
        START_SECONDS.set(time.monotonic() - started)
        logger.info("ready after %.1f s", time.monotonic() - started)

    async def _warm_up(self, generation: Generation) -> None:
        """An image on each endpoint and device, all the way through but the storage, which was checked."""
        size = {"image_size": "square_hd", "num_inference_steps": 2, "sync_mode": True}
        requests: list[tuple[ModelName, BaseInput]] = [
            ("base", TextToImageInput.model_validate({"prompt": _WARM_UP_PROMPT, **size})),
            ("sprint", SprintInput.model_validate({"prompt": _WARM_UP_PROMPT, **size})),
        ]
        for model, request in requests:
            # As many at once as there are devices: each job goes to the device with the least to do.
            devices = range(generation.engine.devices)
            await asyncio.gather(*(generation.run(model, request, base_url="") for _ in devices))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await asyncio.to_thread(self._storage.expire, time.time())
            except StorageError as error:
                logger.warning("expired files could not be deleted: %s", error)

    def _drain_on_signals(self) -> None:
        """On a signal, answer 503 on `/readyz` and finish what was accepted; then the server's turn."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            server_handler = signal.getsignal(number)
            if not callable(server_handler):
                continue

            def handle(number: int, frame: FrameType | None, proceed: SignalHandler = server_handler) -> None:
                if self._draining:
                    proceed(number, frame)
                    return
                self._draining = True
                loop.call_soon_threadsafe(self._spawn, self._drain(partial(proceed, number, frame)))

            with contextlib.suppress(ValueError):  # not the main thread: a test client's loop
                signal.signal(number, handle)

    async def _drain(self, proceed: Callable[[], object]) -> None:
        logger.info("draining, %d requests in flight", self._in_flight)
        await self._idle.wait()
        proceed()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def build_generation(settings: Settings, storage: Storage, encoder: Encoder) -> Generation:
    """Everything that a request goes through, its models loaded and its engine started. Blocks.

    Raises:
        ModelLoadError: a checkpoint cannot be used.
        DeviceError: a device's process cannot.
    """
    names = resolve_devices(settings.devices)
    kind = resolve_kind(settings.models, names[0])
    if names == ["cpu"]:
        # one core stays free for the event loop and the image encoders
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    specs = {name: ServiceDevice(name, kind, settings) for name in names}
    # Several in one process would wait for each other's Python.
    devices: Sequence[Device] = start_devices(specs) if len(specs) > 1 else [specs[names[0]].build()]
    engine = Engine(devices, max_queue=settings.max_queue, max_work=settings.max_queue_work, downstream=encoder)
    engine.start()
    return Generation(engine, encoder, storage, settings, dict(devices[0].names))
