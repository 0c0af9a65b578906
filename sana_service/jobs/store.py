"""Where queued jobs are kept: one small interface, SQLite for one machine, Redis or Valkey for several.

Every method blocks, is atomic and may be called from any thread and any process. A running job has
an owner and a lease; a lease that lapses (its owner was killed) makes the job claimable again, so no
job is lost, and only the owner ends it, so none ends twice.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from sana_service.jobs.record import Cancelled, Delivery, Ending, Job, JobRecord, Report

REDIS_SCHEMES = ("redis", "rediss", "valkey", "valkeys")


class JobStore(Protocol):
    """All methods raise `StoreError` where the store does not answer."""

    def add(self, job: Job, max_waiting: int, ended: Ending | None = None, expires_at: float = 0.0) -> int:
        """Queue a job; with `ended` it is done already.

        Returns:
            Jobs that wait before it.

        Raises:
            StoreFull: `max_waiting` jobs wait already.
        """

    def get(self, job_id: str) -> JobRecord | None:
        """A job that has not expired."""

    def position(self, job_id: str) -> int:
        """Jobs that wait before a queued one; 0 for any other."""

    def waiting(self) -> int:
        """Jobs that are queued."""

    def claim(self, owner: str, now: float, lease_seconds: float, *, overdue: bool = False) -> JobRecord | None:
        """Make the next job the owner's: one whose lease lapsed, else the first in line.

        Args:
            overdue: only one whose `start_by` has passed.
        """

    def renew(self, owner: str, job_ids: Collection[str], until: float) -> dict[str, bool]:
        """Extend leases; for each job that is still the owner's, whether its cancellation was requested."""

    def release(self, owner: str, job_id: str, not_before: float, *, counted: bool) -> bool:
        """Put a running job back in its place in the line; False where it is no longer the owner's.

        Args:
            counted: whether this was an attempt.
        """

    def report(self, owner: str, job_id: str, report: Report) -> None:
        """Keep what a running job tells about itself."""

    def finish(self, owner: str, job_id: str, ending: Ending, now: float, expires_at: float) -> bool:
        """End a running job, and make its webhook due; False where it is no longer the owner's."""

    def cancel(self, job_id: str, ending: Ending, now: float, expires_at: float) -> Cancelled | None:
        """End a queued job, or ask for a running one's end; None where there is no such job."""

    def next_delivery(self, now: float, lease_seconds: float) -> Delivery | None:
        """A webhook call that is due; nobody else is given it before the lease ends."""

    def delivered(self, job_id: str) -> None:
        """The call succeeded, or is given up."""

    def retry_delivery(self, job_id: str, at: float) -> None:
        """Try the call again later; counts as an attempt."""

    def delete_later(self, names: Sequence[str], at: float) -> None:
        """Remember files that are to be deleted."""

    def due_files(self, now: float) -> list[str]:
        """Files whose time has come; each is named once."""

    def secret(self, name: str, proposal: bytes) -> bytes:
        """A secret that all processes on this store share: the first proposal that was made."""

    def purge(self, now: float) -> int:
        """Delete what has expired."""

    def close(self) -> None:
        """Give back what the store holds open."""


def open_store(url: str) -> JobStore:
    """The store that a URL names.

    Raises:
        ValueError: no such kind of store; one line.
        StoreError: it cannot be opened.
    """
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        from sana_service.jobs.sqlite import SqliteStore

        return SqliteStore(sqlite_path(url))
    if scheme in REDIS_SCHEMES:
        from sana_service.jobs.redis import RedisStore

        return RedisStore(url)
    raise ValueError("must be a URL such as sqlite:///var/lib/sana/jobs.db or redis://host:6379/0")


def sqlite_path(url: str) -> Path:
    """The file of a `sqlite:///absolute/path` URL.

    Raises:
        ValueError: it names no absolute path.
    """
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.netloc or parts.query or not path.is_absolute() or path == Path("/"):
        raise ValueError("must be an absolute path with three slashes, such as sqlite:///var/lib/sana/jobs.db")
    return path


def default_url(storage_url: str) -> str:
    """A database in the temporary folder, one for each storage: jobs answer with the files that are there."""
    digest = hashlib.sha256(storage_url.encode()).hexdigest()[:12]
    return (Path(tempfile.gettempdir()) / f"sana-jobs-{digest}" / "jobs.db").as_uri().replace("file:", "sqlite:", 1)
