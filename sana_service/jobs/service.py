"""The job queue of a process: the store, the worker that feeds the generation, the webhooks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

from sana_service.jobs.record import Cancelled, Ending, Job, JobRecord
from sana_service.jobs.store import JobStore
from sana_service.jobs.webhooks import Signer, WebhookSender
from sana_service.jobs.worker import Generate, JobWorker
from sana_service.settings import Settings


class JobService:
    """What the queue's routes ask, and what works in the background.

    Args:
        generate: serves one request.
        accepting: whether it can at the moment.
        is_open: whether jobs are taken: true until the process drains.
        forget: deletes a stored file.
    """

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        generate: Generate,
        accepting: Callable[[], bool],
        is_open: Callable[[], bool],
        forget: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._is_open = is_open
        self._worker = JobWorker(
            store,
            generate,
            accepting,
            forget,
            concurrency=settings.jobs_concurrency,
            max_pixels=settings.max_pixels,
            keep_seconds=settings.file_ttl_seconds,
        )

    @property
    def open(self) -> bool:
        return self._is_open()

    @cached_property
    def _signer(self) -> Signer:
        return Signer(self._store)

    @property
    def key_set(self) -> dict[str, Any]:
        """The webhooks' public key as a JSON Web Key Set."""
        return self._signer.key_set

    async def run(self) -> None:
        """Work and deliver until cancelled."""
        tasks = [asyncio.create_task(self._worker.run())]
        if self._settings.webhook_hosts:
            signer = await asyncio.to_thread(lambda: self._signer)
            sender = WebhookSender(self._store, signer, self._settings.webhook_hosts)
            tasks.append(asyncio.create_task(sender.run()))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        self._store.close()

    async def submit(self, job: Job, max_waiting: int, ended: Ending | None) -> int:
        """Queue a job; with `ended` it is done already. Returns its position.

        Raises:
            StoreFull, StoreError: it was not queued.
        """
        expires_at = time.time() + self._settings.file_ttl_seconds
        position = await asyncio.to_thread(self._store.add, job, max_waiting, ended, expires_at)
        self._worker.wake()
        return position

    async def get(self, job_id: str) -> JobRecord | None:
        record = await asyncio.to_thread(self._store.get, job_id)
        progress = self._worker.progress(job_id)
        return record if record is None or progress is None else replace(record, report=progress)

    async def position(self, job_id: str) -> int:
        return await asyncio.to_thread(self._store.position, job_id)

    async def cancel(self, job_id: str, ending: Ending) -> Cancelled | None:
        """End a queued job, or ask for a running one's end."""
        now = time.time()
        expires_at = now + self._settings.file_ttl_seconds
        outcome = await asyncio.to_thread(self._store.cancel, job_id, ending, now, expires_at)
        if outcome == "requested":
            self._worker.cancel_unwanted({job_id})
        return outcome

    async def delete_later(self, names: list[str], lifetime_seconds: float) -> None:
        """Delete files after a while."""
        await asyncio.to_thread(self._store.delete_later, names, time.time() + lifetime_seconds)
