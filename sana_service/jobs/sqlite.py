"""Jobs in an SQLite file: one machine, any number of processes, survives a crash of them and of the host.

One connection, one lock; every method is one immediate transaction.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sana_service.jobs.record import (
    Cancelled,
    Delivery,
    Ending,
    Job,
    JobRecord,
    Report,
    StoreError,
    StoreFull,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    job TEXT NOT NULL,
    priority INTEGER NOT NULL,
    start_by REAL,
    state TEXT NOT NULL DEFAULT 'queued',
    not_before REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    lease_until REAL,
    cancel INTEGER NOT NULL DEFAULT 0,
    report TEXT,
    ending TEXT,
    body BLOB,
    expires_at REAL,
    delivery_at REAL,
    delivery_attempt INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS line ON jobs (state, priority, seq);
CREATE INDEX IF NOT EXISTS deliveries ON jobs (delivery_at) WHERE delivery_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, at REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
"""
_RECORD = "job, state, attempts, cancel, report, ending, body"
_NEXT = """
SELECT id FROM jobs WHERE (state = 'running' AND lease_until <= :now)
    OR (state = 'queued' AND not_before <= :now)
ORDER BY state = 'queued', priority, seq LIMIT 1
"""
_NEXT_OVERDUE = "SELECT id FROM jobs WHERE state = 'queued' AND start_by <= :now ORDER BY seq LIMIT 1"


class SqliteStore:
    """A `JobStore` in a file.

    Args:
        path: of the database; made, with its folder, readable by its owner alone.

    Raises:
        StoreError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Whoever owns the folder could exchange the file.
            if path.parent.stat().st_uid not in {0, os.geteuid()}:
                raise StoreError(f"{path.parent} belongs to somebody else")
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
        except OSError as error:
            raise StoreError(f"{path} cannot be opened: {error.strerror}") from error
        except sqlite3.Error as error:
            raise StoreError(f"{path} cannot be opened: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def add(self, job: Job, max_waiting: int, ended: Ending | None = None, expires_at: float = 0.0) -> int:
        with self._transaction() as sql:
            waiting = _count(sql, "SELECT count(*) FROM jobs WHERE state = 'queued'")
            if ended is None and waiting >= max_waiting:
                raise StoreFull(waiting)
            sql.execute(
                "INSERT INTO jobs (id, job, priority, start_by) VALUES (?, ?, ?, ?)",
                (job.id, job.to_json(), job.priority, job.start_by),
            )
            if ended is not None:
                _end(sql, job, ended, job.submitted_at, expires_at)
        return self.position(job.id)

    def get(self, job_id: str) -> JobRecord | None:
        with self._transaction() as sql:
            return _record(sql, job_id)

    def position(self, job_id: str) -> int:
        with self._transaction() as sql:
            return _count(
                sql,
                """SELECT count(*) FROM jobs AS other, jobs AS mine WHERE mine.id = ? AND mine.state = 'queued'
                   AND other.state = 'queued' AND (other.priority, other.seq) < (mine.priority, mine.seq)""",
                job_id,
            )

    def waiting(self) -> int:
        with self._transaction() as sql:
            return _count(sql, "SELECT count(*) FROM jobs WHERE state = 'queued'")

    def claim(self, owner: str, now: float, lease_seconds: float, *, overdue: bool = False) -> JobRecord | None:
        with self._transaction() as sql:
            row = sql.execute(_NEXT_OVERDUE if overdue else _NEXT, {"now": now}).fetchone()
            if row is None:
                return None
            sql.execute(
                """UPDATE jobs SET state = 'running', attempts = attempts + 1, owner = ?, lease_until = ?, report = NULL
                   WHERE id = ?""",
                (owner, now + lease_seconds, row[0]),
            )
            return _record(sql, row[0])

    def renew(self, owner: str, job_ids: Collection[str], until: float) -> dict[str, bool]:
        renewed = {}
        with self._transaction() as sql:
            for job_id in job_ids:
                row = sql.execute(
                    """UPDATE jobs SET lease_until = ? WHERE id = ? AND state = 'running' AND owner = ?
                       RETURNING cancel""",
                    (until, job_id, owner),
                ).fetchone()
                if row is not None:
                    renewed[job_id] = bool(row[0])
        return renewed

    def release(self, owner: str, job_id: str, not_before: float, *, counted: bool) -> bool:
        with self._transaction() as sql:
            released = sql.execute(
                """UPDATE jobs SET state = 'queued', owner = NULL, lease_until = NULL, report = NULL, not_before = ?,
                   attempts = attempts - ? WHERE id = ? AND state = 'running' AND owner = ?""",
                (not_before, 0 if counted else 1, job_id, owner),
            )
            return released.rowcount == 1

    def report(self, owner: str, job_id: str, report: Report) -> None:
        with self._transaction() as sql:
            sql.execute(
                "UPDATE jobs SET report = ? WHERE id = ? AND state = 'running' AND owner = ?",
                (report.to_json(), job_id, owner),
            )

    def finish(self, owner: str, job_id: str, ending: Ending, now: float, expires_at: float) -> bool:
        with self._transaction() as sql:
            row = sql.execute(
                "SELECT job FROM jobs WHERE id = ? AND state = 'running' AND owner = ?", (job_id, owner)
            ).fetchone()
            if row is None:
                return False
            _end(sql, Job.from_json(row[0]), ending, now, expires_at)
            return True

    def cancel(self, job_id: str, ending: Ending, now: float, expires_at: float) -> Cancelled | None:
        with self._transaction() as sql:
            record = _record(sql, job_id)
            if record is None:
                return None
            if record.state == "queued":
                _end(sql, record.job, ending, now, expires_at)
                return "ended"
            if record.state == "running":
                sql.execute("UPDATE jobs SET cancel = 1 WHERE id = ?", (job_id,))
                return "requested"
            return "done"

    def next_delivery(self, now: float, lease_seconds: float) -> Delivery | None:
        with self._transaction() as sql:
            row = sql.execute(
                "SELECT id, delivery_attempt FROM jobs WHERE delivery_at <= ? ORDER BY delivery_at LIMIT 1", (now,)
            ).fetchone()
            if row is None:
                return None
            sql.execute("UPDATE jobs SET delivery_at = ? WHERE id = ?", (now + lease_seconds, row[0]))
            record = _record(sql, row[0])
            return None if record is None else Delivery(record, row[1])

    def delivered(self, job_id: str) -> None:
        with self._transaction() as sql:
            sql.execute("UPDATE jobs SET delivery_at = NULL WHERE id = ?", (job_id,))

    def retry_delivery(self, job_id: str, at: float) -> None:
        with self._transaction() as sql:
            sql.execute(
                "UPDATE jobs SET delivery_at = ?, delivery_attempt = delivery_attempt + 1 WHERE id = ?", (at, job_id)
            )

    def delete_later(self, names: Sequence[str], at: float) -> None:
        with self._transaction() as sql:
            sql.executemany("INSERT OR REPLACE INTO files VALUES (?, ?)", [(name, at) for name in names])

    def due_files(self, now: float) -> list[str]:
        with self._transaction() as sql:
            return [row[0] for row in sql.execute("DELETE FROM files WHERE at <= ? RETURNING name", (now,)).fetchall()]

    def secret(self, name: str, proposal: bytes) -> bytes:
        with self._transaction() as sql:
            sql.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, proposal))
            value: bytes = sql.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()[0]
            return value

    def purge(self, now: float) -> int:
        with self._transaction() as sql:
            # What is still to be told is kept until it was.
            return sql.execute("DELETE FROM jobs WHERE expires_at <= ? AND delivery_at IS NULL", (now,)).rowcount

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error


def _count(sql: sqlite3.Connection, query: str, *values: object) -> int:
    number: int = sql.execute(query, values).fetchone()[0]
    return number


def _record(sql: sqlite3.Connection, job_id: str) -> JobRecord | None:
    row = sql.execute(f"SELECT {_RECORD} FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        return None
    job, state, attempts, cancel, report, ending, body = row
    return JobRecord(
        Job.from_json(job),
        state,
        attempts,
        bool(cancel),
        Report.from_json(report),
        None if ending is None else Ending.from_parts(ending, body),
    )


def _end(sql: sqlite3.Connection, job: Job, ending: Ending, now: float, expires_at: float) -> None:
    sql.execute(
        """UPDATE jobs SET state = 'done', owner = NULL, lease_until = NULL, ending = ?, body = ?, expires_at = ?,
           delivery_at = ? WHERE id = ?""",
        (ending.head_to_json(), ending.body, expires_at, None if job.webhook is None else now, job.id),
    )
