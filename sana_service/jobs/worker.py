"""Feeds queued jobs to the generation, and ends each one exactly once.

    claim --> generate --> finish      served, or refused for good
                 |`------> release     the service is busy, drains or was unavailable: later, its place kept
                 `-------> finish 499  its client cancelled it

Leases are renewed while a job runs. A job whose lease was lost meanwhile belongs to another worker:
what was made of it here is thrown away. Nothing here knows HTTP but the endings, which are responses.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sana_service.contract.answers import answer_headers
from sana_service.contract.errors import InvalidFields, Overloaded, ServiceError, Unavailable
from sana_service.contract.fal import error_type
from sana_service.contract.schemas import BaseInput, Output, SprintInput, TextToImageInput
from sana_service.jobs.record import Ending, Job, JobRecord, LogLine, Report, StoreError
from sana_service.jobs.store import JobStore
from sana_service.telemetry import get_logger, request_id

if TYPE_CHECKING:
    from sana_service.engine.observer import Observer, Preview, Progress
    from sana_service.models.names import ModelName

logger = get_logger("jobs")

Generate = Callable[["ModelName", BaseInput, str, "Observer"], Awaitable[Output]]

LEASE_SECONDS = 10.0
MAX_ATTEMPTS = 5
_POLL_SECONDS = 0.5
# For other replicas; this one reads a job's progress where it is made.
_REPORT_SECONDS = 1.0
_BUSY_SECONDS = 1.0
_UNAVAILABLE_SECONDS = 2.0

_INPUTS: dict[str, type[BaseInput]] = {"base": TextToImageInput, "sprint": SprintInput}


def parse_payload(model: str, payload: str | dict[str, Any], max_pixels: int) -> BaseInput:
    """The request model of a job.

    Raises:
        InvalidFields: a field is missing, unknown, of the wrong type or out of bounds.
    """
    data = json.loads(payload) if isinstance(payload, str) else payload
    try:
        return _INPUTS[model].model_validate(data, context={"max_pixels": max_pixels})
    except ValidationError as error:
        raise InvalidFields(error) from error


def served(request: BaseInput, output: Output, seconds: float) -> Ending:
    """The ending of a job that was served."""
    headers = {"content-type": "application/json", **answer_headers(request, output)}
    return Ending(200, headers, output.model_dump_json().encode(), inference_seconds=seconds)


def refused(error: ServiceError, seconds: float | None = None) -> Ending:
    """The ending of a job that failed."""
    headers = {"content-type": "application/json", **error.headers}
    sentence = error.detail if isinstance(error.detail, str) else error.status.phrase
    return Ending(
        int(error.status), headers, json.dumps(error.body).encode(), seconds, sentence, error_type(int(error.status))
    )


def cancelled() -> Ending:
    """The ending of a job whose client no longer wants it."""
    body = {"detail": "The request was cancelled.", "error_type": "client_cancelled"}
    headers = {"content-type": "application/json", "x-fal-error-type": "client_cancelled"}
    return Ending(499, headers, json.dumps(body).encode(), None, body["detail"], "client_cancelled")


def not_started_in_time() -> Ending:
    """The ending of a job whose start timeout passed while it waited."""
    body = {"detail": "The request was not started within its timeout.", "error_type": "request_timeout"}
    headers = {
        "content-type": "application/json",
        "x-fal-error-type": "request_timeout",
        "x-fal-request-timeout-type": "user",
    }
    return Ending(504, headers, json.dumps(body).encode(), None, body["detail"], "request_timeout")


class JobWorker:
    """Works on the store's jobs while this process can.

    Args:
        generate: serves one request.
        accepting: whether it can at the moment: models loaded, not draining.
        concurrency: jobs handed to the engine at a time.
        max_pixels: the area limit.
        keep_seconds: how long an ended job is kept.
        forget: deletes a stored file.
        lease_seconds: after which another worker may take over a job of a process that was killed.
    """

    def __init__(
        self,
        store: JobStore,
        generate: Generate,
        accepting: Callable[[], bool],
        forget: Callable[[str], None],
        *,
        concurrency: int,
        max_pixels: int,
        keep_seconds: float,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._store = store
        self._generate = generate
        self._accepting = accepting
        self._forget = forget
        self._concurrency = concurrency
        self._max_pixels = max_pixels
        self._keep_seconds = keep_seconds
        self._lease_seconds = lease_seconds
        self._owner = uuid.uuid4().hex
        self._running: dict[str, asyncio.Task[None]] = {}
        self._unwanted: set[str] = set()
        self._watches: dict[str, _Watch] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """A job may be waiting: look now."""
        self._wake.set()

    def progress(self, job_id: str) -> Report | None:
        """How far a job is that runs here."""
        watch = self._watches.get(job_id)
        return None if watch is None else watch.report

    async def run(self) -> None:
        """Work until cancelled; running jobs then go back to the line."""
        helpers = [asyncio.create_task(each) for each in (self._keep_leases(), self._tidy())]
        try:
            while True:
                await self._step()
        finally:
            for task in (*helpers, *self._running.values()):
                task.cancel()
            await asyncio.gather(*helpers, *self._running.values(), return_exceptions=True)

    async def _step(self) -> None:
        self._wake.clear()
        try:
            if self._accepting() and len(self._running) < self._concurrency:
                record = await self._claim()
                if record is not None:
                    # A clock that is set forward lets leases lapse that are held here: the claim renewed one.
                    if record.job.id not in self._running:
                        self._start(record)
                    return
        except StoreError as error:
            logger.warning("the job store does not answer: %s", error)
        # Not `wait_for`: up to Python 3.11 it loses a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await self._wake.wait()

    async def _claim(self) -> JobRecord | None:
        """The next of the line; where the process stops before it is known which, it goes back there."""
        claiming = asyncio.ensure_future(
            asyncio.to_thread(self._store.claim, self._owner, time.time(), self._lease_seconds)
        )
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with contextlib.suppress(StoreError):
                record = await claiming
                if record is not None and record.job.id not in self._running:
                    self._store.release(self._owner, record.job.id, time.time(), counted=False)
            raise

    def _start(self, record: JobRecord) -> None:
        task = asyncio.create_task(self._work(record))
        self._running[record.job.id] = task

        def done(_: asyncio.Task[None]) -> None:
            self._running.pop(record.job.id, None)
            self._unwanted.discard(record.job.id)
            self._watches.pop(record.job.id, None)
            self.wake()

        task.add_done_callback(done)

    async def _work(self, record: JobRecord) -> None:
        job = record.job
        request_id.set(job.id)
        try:
            ending = await self._ending(record)
        except asyncio.CancelledError:
            if job.id not in self._unwanted:
                # The process stops. Its lease would lapse anyway; this is quicker.
                with contextlib.suppress(StoreError):
                    self._store.release(self._owner, job.id, time.time(), counted=False)
                raise
            ending = cancelled()
        except _LaterError as later:
            await self._persist(self._store.release, self._owner, job.id, time.time() + later.seconds, later.counted)
            return
        now = time.time()
        kept = await self._persist(self._store.finish, self._owner, job.id, ending, now, now + self._keep_seconds)
        if not kept:
            logger.warning("job %s was taken over by another worker", job.id)

    async def _ending(self, record: JobRecord) -> Ending:
        """How the job ends.

        Raises:
            _LaterError: not now.
            CancelledError: its client left, its lease was lost, or the process stops.
        """
        early = _ending_without_work(record)
        if early is not None:
            return early
        job = record.job
        started = time.monotonic()
        watch = self._watches[job.id] = _Watch(self._store, self._owner, job.id)
        try:
            request = parse_payload(job.model, job.payload, self._max_pixels)
            async with watch:
                output = await self._generate("base" if job.model == "base" else "sprint", request, job.base_url, watch)
        except Overloaded as error:
            raise _LaterError(_BUSY_SECONDS, counted=False) from error
        except Unavailable as error:
            if not self._accepting():
                raise _LaterError(0.0, counted=False) from error
            if job.retry and record.attempts < MAX_ATTEMPTS:
                raise _LaterError(_UNAVAILABLE_SECONDS * record.attempts, counted=True) from error
            return refused(error, time.monotonic() - started)
        except ServiceError as error:
            return refused(error, time.monotonic() - started)
        except Exception:
            logger.exception("job %s failed", job.id)
            return refused(ServiceError(), time.monotonic() - started)
        await self._keep_images_for(job, output, request.sync_mode)
        return served(request, output, time.monotonic() - started)

    async def _keep_images_for(self, job: Job, output: Output, inline: bool) -> None:
        if job.lifetime_seconds is not None and not inline:
            names = [image.file_name for image in output.images]
            await self._persist(self._store.delete_later, names, time.time() + job.lifetime_seconds)

    async def _persist(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call the store until it answers: an end must not be lost to a short outage."""
        while True:
            try:
                if method == self._store.release:
                    *rest, counted = arguments
                    return await asyncio.to_thread(self._store.release, *rest, counted=counted)
                return await asyncio.to_thread(method, *arguments)
            except StoreError as error:
                logger.warning("the job store does not answer: %s", error)
                await asyncio.sleep(_POLL_SECONDS)

    async def _keep_leases(self) -> None:
        """Renew leases; end the work on jobs that are no longer wanted here."""
        while True:
            await asyncio.sleep(min(1.0, self._lease_seconds / 3))
            if not self._running:
                continue
            until = time.time() + self._lease_seconds
            try:
                ours = await asyncio.to_thread(self._store.renew, self._owner, tuple(self._running), until)
            except StoreError as error:
                logger.warning("leases of jobs could not be renewed: %s", error)
                continue
            self.cancel_unwanted({job_id for job_id in self._running if ours.get(job_id, True)})

    def cancel_unwanted(self, job_ids: set[str]) -> None:
        """End the work on jobs that were cancelled or lost; others are not touched."""
        for job_id in job_ids - self._unwanted:
            task = self._running.get(job_id)
            if task is not None:
                self._unwanted.add(job_id)
                task.cancel()

    async def _tidy(self) -> None:
        """End the jobs that waited too long, delete what has expired."""
        while True:
            try:
                while (late := await asyncio.to_thread(self._claim_overdue)) is not None:
                    now = time.time()
                    expires_at = now + self._keep_seconds
                    ending = cancelled() if late.cancel_requested else not_started_in_time()
                    await asyncio.to_thread(self._store.finish, self._owner, late.job.id, ending, now, expires_at)
                for name in await asyncio.to_thread(self._store.due_files, time.time()):
                    await asyncio.to_thread(self._forget, name)
                await asyncio.to_thread(self._store.purge, time.time())
            except StoreError as error:
                logger.warning("the job store does not answer: %s", error)
            await asyncio.sleep(_POLL_SECONDS)

    def _claim_overdue(self) -> JobRecord | None:
        return self._store.claim(self._owner, time.time(), self._lease_seconds, overdue=True)


def _ending_without_work(record: JobRecord) -> Ending | None:
    job = record.job
    if record.cancel_requested:
        return cancelled()
    if record.attempts == 1 and job.start_by is not None and time.time() >= job.start_by:
        return not_started_in_time()
    if record.attempts > (MAX_ATTEMPTS if job.retry else 1):
        return refused(Unavailable("The request was interrupted and is not tried again."))
    return None


class _LaterError(Exception):
    """The job goes back to the line.

    Args:
        seconds: until it is tried again.
        counted: whether this was an attempt.
    """

    def __init__(self, seconds: float, *, counted: bool) -> None:
        super().__init__("later")
        self.seconds = seconds
        self.counted = counted


class _Watch:
    """The engine's observer of one job: keeps its progress in the store, once a second at most."""

    previews = 0

    def __init__(self, store: JobStore, owner: str, job_id: str) -> None:
        self._store = store
        self._owner = owner
        self._job_id = job_id
        self.report = Report((_line("started"),))
        self._told: Report | None = None
        self._task: asyncio.Task[None] | None = None

    def progress(self, progress: Progress) -> None:
        """From the device's thread: exchange the report, which is read elsewhere."""
        report = self.report
        logs = report.logs
        if progress.stage != report.stage:
            logs = (*logs, _line(progress.stage))
        elif progress.steps_done > report.steps_done:
            logs = (*logs, _line(f"{progress.stage} {progress.steps_done}/{progress.steps}"))
        self.report = Report(logs, progress.stage, progress.steps_done, progress.steps)

    def preview(self, preview: Preview) -> None:
        """None is asked for."""

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._tell())

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
        # The last word stays with the record, so that a finished job has all of its log.
        await self._store_report()

    async def _tell(self) -> None:
        while True:
            await self._store_report()
            await asyncio.sleep(_REPORT_SECONDS)

    async def _store_report(self) -> None:
        report = self.report
        if report == self._told:
            return
        try:
            await asyncio.to_thread(self._store.report, self._owner, self._job_id, report)
            self._told = report
        except StoreError as error:
            logger.warning("progress of job %s is not kept: %s", self._job_id, error)


def _line(message: str) -> LogLine:
    return LogLine(message, datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"))
