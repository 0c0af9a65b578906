"""Every error has one outcome and one reason, and those are the metrics'."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest

from sana_service import metrics
from sana_service.contract.errors import DeadlinePassed, Overloaded, ServiceError, Unavailable, from_engine
from sana_service.contract.fal import StartTimeout
from sana_service.contract.idempotency import KeyReused
from sana_service.engine import errors
from sana_service.jobs.record import StoreError
from sana_service.outcomes import outcome_of, reason_of
from sana_service.storage import StorageError


def raised(cause: Exception, answer: ServiceError | None = None) -> BaseException:
    """The error that a request ends with, as `generation` raises it."""
    try:
        raise (answer or from_engine(cause)) from cause  # type: ignore[arg-type]
    except ServiceError as error:
        return error


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (asyncio.CancelledError(), "cancelled", "client_left"),
        (raised(errors.QueueFull(3.0)), "refused", "queue_full"),
        (raised(errors.DeadlineOutOfReach(3.0)), "refused", "deadline_out_of_reach"),
        (raised(errors.NotReady("draining")), "refused", "not_ready"),
        (Overloaded("4 requests of this API key are being served"), "refused", "key_limit"),
        (raised(errors.DeadlineExceeded("late")), "expired", "deadline"),
        (DeadlinePassed(), "expired", "deadline"),
        (StartTimeout(), "expired", "deadline"),
        (KeyReused(), "refused", "key_reused"),
        (raised(StoreError("redis"), Unavailable("store")), "failed", "job_store"),
        (raised(errors.QueueFull(1.0), Overloaded("too many wait for one key")), "refused", "queue_full"),
        (raised(errors.OutOfDeviceMemory("no room")), "failed", "out_of_memory"),
        (raised(errors.NotFinite("NaN")), "failed", "not_finite"),
        (raised(StorageError("full"), Unavailable("storage")), "failed", "storage"),
        (raised(errors.EngineError("?")), "failed", "internal"),
        (RuntimeError("?"), "failed", "internal"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(getattr(value, "__cause__", None) or value).__name__,
)
def test_an_error_is_counted_as(error: BaseException, outcome: str, reason: str) -> None:
    assert (outcome_of(error), reason_of(error)) == (outcome, reason)
    assert outcome in metrics.OUTCOMES
    assert reason in get_args(metrics.Reason)
