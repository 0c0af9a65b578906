"""How a request that passed validation ended, and why: what the metrics count, told by the error alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sana_service.contract.errors import DeadlinePassed, Overloaded, Unavailable
from sana_service.contract.fal import StartTimeout
from sana_service.contract.idempotency import KeyReused
from sana_service.engine.errors import DeadlineOutOfReach, NotFinite, NotReady, OutOfDeviceMemory, QueueFull
from sana_service.jobs.record import StoreError
from sana_service.storage import StorageError

if TYPE_CHECKING:
    from sana_service.metrics import Outcome, Reason


_OF_THE_ERROR: tuple[tuple[tuple[type[BaseException], ...], Reason], ...] = (
    ((asyncio.CancelledError,), "client_left"),
    ((KeyReused,), "key_reused"),
    ((DeadlinePassed, StartTimeout), "deadline"),
)
_OF_ITS_CAUSE: tuple[tuple[type[Exception], Reason], ...] = (
    (DeadlineOutOfReach, "deadline_out_of_reach"),  # a QueueFull too, so it stands before it
    (QueueFull, "queue_full"),
    (NotReady, "not_ready"),
    (OutOfDeviceMemory, "out_of_memory"),
    (NotFinite, "not_finite"),
    (StorageError, "storage"),
    (StoreError, "job_store"),
)


def outcome_of(error: BaseException) -> Outcome:
    """How a request ended that was not answered with images."""
    match error:
        case asyncio.CancelledError():
            return "cancelled"
        case Overloaded() | KeyReused():
            return "refused"
        case Unavailable() if isinstance(error.__cause__, NotReady):
            return "refused"
        case DeadlinePassed() | StartTimeout():
            return "expired"
    return "failed"


def reason_of(error: BaseException) -> Reason:
    """Why. An error that is not known here is `internal`: its trace is in the log."""
    for kinds, reason in _OF_THE_ERROR:
        if isinstance(error, kinds):
            return reason
    for kind, reason in _OF_ITS_CAUSE:
        if isinstance(error.__cause__, kind):
            return reason
    return "key_limit" if isinstance(error, Overloaded) else "internal"
