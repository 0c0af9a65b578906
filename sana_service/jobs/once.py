"""A request with a key is served once, however often it is sent and to whichever replica.

    free --claim--> held by its owner --keep--> answered, until it expires
      ^               |
      `---release-----'   (an error, or the owner's lease lapsed: it was killed, or hangs)

Only answers with pictures are kept: after an error the same key tries again. Whoever finds the key held waits for its
end. An owner that was thought dead and comes back finds that it is one no more: its pictures are deleted, and
it answers with the other's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol
from urllib.parse import urlsplit

from sana_service.contract.errors import DeadlinePassed, Overloaded, Unavailable
from sana_service.contract.idempotency import KeyReused, Superseded
from sana_service.engine.errors import QueueFull
from sana_service.jobs.keys import Answer, Held, KeyStore, MemoryKeys
from sana_service.jobs.record import StoreError
from sana_service.jobs.store import REDIS_SCHEMES
from sana_service.telemetry import get_logger

logger = get_logger("idempotency")

LEASE_SECONDS = 10.0
_RENEWALS_PER_LEASE = 4
_POLL_SECONDS, _MAX_POLL_SECONDS = 0.1, 1.0
MAX_WAITING = 256
"""Requests of a process that wait for another with their key; one more is refused."""


class Settle(Protocol):
    """What work calls with its answer before that is final."""

    async def __call__(self, answer: Answer, seconds: float = math.inf) -> None:
        """Keep the answer, for so long at most.

        Raises:
            Superseded: another replica has taken over.
        """


class Once:
    """Serves keys once.

    Args:
        store: shared by the replicas.
        keep_seconds: how long an answer is replayed at most; as long as its images are there.
        lease_seconds: after which a key is free whose owner has fallen silent.
    """

    def __init__(self, store: KeyStore, keep_seconds: float, lease_seconds: float = LEASE_SECONDS) -> None:
        self._store = store
        self._keep_seconds = keep_seconds
        self._lease_seconds = lease_seconds
        self._waiting = 0

    async def serve(
        self, name: str, fingerprint: str, work: Callable[[Settle], Awaitable[None]], deadline: float
    ) -> Answer | None:
        """Do the work, unless somebody did; None where it was done here.

        Args:
            name: of the key, its caller included.
            fingerprint: of the request.
            work: is given what to call with its answer.
            deadline: `time.monotonic()` until which it waits for another request with this key.

        Raises:
            KeyReused: the key came with another request.
            Overloaded: too many requests wait for others.
            Unavailable: the store does not answer.
            DeadlinePassed: another request with this key did not end in time.
            ServiceError: what the work raised; the key is free again.
        """
        pause = _POLL_SECONDS
        while True:
            owner = uuid.uuid4().hex
            held = await self._ask(self._store.claim, name, fingerprint, owner, self._lease_seconds)
            if held is None:
                with contextlib.suppress(Superseded):
                    await self._work(name, fingerprint, owner, work)
                    return None
            elif held.fingerprint != fingerprint:
                raise KeyReused
            elif held.answer is not None:
                return held.answer
            elif time.monotonic() > deadline:
                raise DeadlinePassed("Another request with this Idempotency-Key did not end in time.")
            else:
                await self._pause(pause)
                pause = min(pause * 1.5, _MAX_POLL_SECONDS)

    async def _pause(self, seconds: float) -> None:
        if self._waiting >= MAX_WAITING:
            full = Overloaded("Too many requests wait for another with the same Idempotency-Key, retry later.")
            raise full from QueueFull(_MAX_POLL_SECONDS)
        self._waiting += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._waiting -= 1

    async def _work(self, name: str, fingerprint: str, owner: str, work: Callable[[Settle], Awaitable[None]]) -> None:
        async def settle(answer: Answer, seconds: float = math.inf) -> None:
            try:
                keep = (name, fingerprint, owner, answer, min(seconds, self._keep_seconds))
                kept = await asyncio.to_thread(self._store.keep, *keep)
            except StoreError as error:
                # The picture is made: better one answer than none, though a repetition would be served anew.
                logger.warning("an answer is not kept under its key: %s", error)
                return
            if not kept:
                raise Superseded

        async with self._renewing(name, owner):
            try:
                await work(settle)
            except BaseException:
                # Also when the client has left: whoever repeats the request should not wait for the lease.
                releasing = asyncio.ensure_future(asyncio.to_thread(self._store.release, name, owner))
                releasing.add_done_callback(_swallow)
                raise

    @contextlib.asynccontextmanager
    async def _renewing(self, name: str, owner: str) -> AsyncIterator[None]:
        async def renew() -> None:
            while True:
                await asyncio.sleep(self._lease_seconds / _RENEWALS_PER_LEASE)
                try:
                    await asyncio.to_thread(self._store.renew, name, owner, self._lease_seconds)
                except StoreError as error:
                    logger.warning("the lease of a key could not be renewed: %s", error)

        task = asyncio.create_task(renew())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _ask(self, method: Callable[..., Held | None], *arguments: object) -> Held | None:
        try:
            return await asyncio.to_thread(method, *arguments)
        except StoreError as error:
            logger.error("the store of idempotency keys does not answer: %s", error)
            raise Unavailable("The store of idempotency keys does not answer, retry later.") from error

    def close(self) -> None:
        self._store.close()


def _swallow(released: asyncio.Future[None]) -> None:
    if not released.cancelled() and (error := released.exception()) is not None:
        logger.warning("a key is free only when its lease lapses: %s", error)


def open_keys(jobs_url: str | None) -> KeyStore:
    """Where keys are kept: beside the queue's jobs where those are in Redis or Valkey, else in this process."""
    if jobs_url is None or urlsplit(jobs_url).scheme not in REDIS_SCHEMES:
        return MemoryKeys()
    from sana_service.jobs.keys_redis import RedisKeys

    return RedisKeys(jobs_url)


def key_name(caller: bytes | None, key: str) -> str:
    """A key as its store knows it: two callers may use the same."""
    who = "" if caller is None else caller.hex()
    return hashlib.sha256(f"{who}:{key}".encode()).hexdigest()


def fingerprint(model: str, request_json: str) -> str:
    """What two requests with one key must share."""
    return hashlib.sha256(f"{model}:{request_json}".encode()).hexdigest()
