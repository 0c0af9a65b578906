"""Jobs in Redis or Valkey: several replicas share one queue.

A job is a hash; sorted sets hold the line, the jobs put off, the running ones by lease, start
deadlines, due webhooks and files to delete. What must not come apart is one Lua script. One server
with its replicas, not a sharded cluster: the scripts name their keys themselves.

Durability is the server's: with `appendonly yes` its jobs survive a crash of it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis

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

_PREFIX = "sana:"
_TIMEOUT_SECONDS = 5.0
# Scores are doubles: whole numbers up to 2**53.
_PRIORITY_STEP = 2**48

_END = """
local function finish(id, head, body, now, expires_at)
    local key = P .. 'job:' .. id
    redis.call('HSET', key, 'state', 'done', 'ending', head, 'body', body, 'expires_at', expires_at)
    redis.call('HDEL', key, 'owner')
    for _, set in ipairs({'line', 'later', 'running', 'start_by'}) do redis.call('ZREM', P .. set, id) end
    redis.call('ZADD', P .. 'expires', expires_at, id)
    if redis.call('HGET', key, 'webhook') == '1' then redis.call('ZADD', P .. 'deliveries', now, id) end
end
"""
_ADD = """
local id, job, priority, start_by, webhook, max_waiting = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local waiting = redis.call('ZCARD', P .. 'line') + redis.call('ZCARD', P .. 'later')
if ARGV[7] == '' and waiting >= tonumber(max_waiting) then return {'full', waiting} end
local score = tonumber(priority) * STEP + redis.call('INCR', P .. 'seq')
redis.call('HSET', P .. 'job:' .. id, 'job', job, 'state', 'queued', 'attempts', 0, 'cancel', 0,
    'score', string.format('%.0f', score), 'webhook', webhook, 'delivery_attempt', 0)
if ARGV[7] ~= '' then finish(id, ARGV[7], ARGV[8], ARGV[9], ARGV[10]) return {'ok', 0} end
redis.call('ZADD', P .. 'line', score, id)
if start_by ~= '' then redis.call('ZADD', P .. 'start_by', start_by, id) end
return {'ok', redis.call('ZRANK', P .. 'line', id)}
"""
_CLAIM = """
local owner, now, lease_until = ARGV[1], ARGV[2], ARGV[3]
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'later', '-inf', now)) do
    redis.call('ZREM', P .. 'later', id)
    redis.call('ZADD', P .. 'line', redis.call('HGET', P .. 'job:' .. id, 'score'), id)
end
local found
if ARGV[4] == '1' then
    found = redis.call('ZRANGEBYSCORE', P .. 'start_by', '-inf', now, 'LIMIT', 0, 1)
else
    found = redis.call('ZRANGEBYSCORE', P .. 'running', '-inf', now, 'LIMIT', 0, 1)
    if #found == 0 then found = redis.call('ZRANGE', P .. 'line', 0, 0) end
end
if #found == 0 then return false end
local id = found[1]
for _, set in ipairs({'line', 'later', 'start_by'}) do redis.call('ZREM', P .. set, id) end
redis.call('ZADD', P .. 'running', lease_until, id)
redis.call('HSET', P .. 'job:' .. id, 'state', 'running', 'owner', owner)
redis.call('HDEL', P .. 'job:' .. id, 'report')
redis.call('HINCRBY', P .. 'job:' .. id, 'attempts', 1)
return id
"""
_RENEW = """
local renewed = {}
for i = 3, #ARGV do
    if redis.call('HGET', P .. 'job:' .. ARGV[i], 'owner') == ARGV[1] then
        redis.call('ZADD', P .. 'running', ARGV[2], ARGV[i])
        table.insert(renewed, ARGV[i])
        table.insert(renewed, redis.call('HGET', P .. 'job:' .. ARGV[i], 'cancel'))
    end
end
return renewed
"""
_RELEASE = """
local owner, id, not_before, uncounted, start_by = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local key = P .. 'job:' .. id
if redis.call('HGET', key, 'owner') ~= owner then return 0 end
redis.call('HSET', key, 'state', 'queued')
redis.call('HDEL', key, 'owner', 'report')
redis.call('HINCRBY', key, 'attempts', 0 - tonumber(uncounted))
redis.call('ZREM', P .. 'running', id)
redis.call('ZADD', P .. 'later', not_before, id)
if start_by ~= '' then redis.call('ZADD', P .. 'start_by', start_by, id) end
return 1
"""
_REPORT = """
if redis.call('HGET', P .. 'job:' .. ARGV[2], 'owner') == ARGV[1] then
    redis.call('HSET', P .. 'job:' .. ARGV[2], 'report', ARGV[3])
end
"""
_FINISH = """
if redis.call('HGET', P .. 'job:' .. ARGV[2], 'owner') ~= ARGV[1] then return 0 end
finish(ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
return 1
"""
_CANCEL = """
local state = redis.call('HGET', P .. 'job:' .. ARGV[1], 'state')
if state == 'queued' then finish(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]) return 'ended' end
if state == 'running' then redis.call('HSET', P .. 'job:' .. ARGV[1], 'cancel', 1) return 'requested' end
return state
"""
_DELIVERY = """
local found = redis.call('ZRANGEBYSCORE', P .. 'deliveries', '-inf', ARGV[1], 'LIMIT', 0, 1)
if #found == 0 then return false end
redis.call('ZADD', P .. 'deliveries', ARGV[2], found[1])
return {found[1], redis.call('HGET', P .. 'job:' .. found[1], 'delivery_attempt')}
"""
_FILES = """
local names = redis.call('ZRANGEBYSCORE', P .. 'files', '-inf', ARGV[1])
for _, name in ipairs(names) do redis.call('ZREM', P .. 'files', name) end
return names
"""
_PURGE = """
local purged = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'expires', '-inf', ARGV[1])) do
    if not redis.call('ZSCORE', P .. 'deliveries', id) then
        redis.call('DEL', P .. 'job:' .. id)
        redis.call('ZREM', P .. 'expires', id)
        purged = purged + 1
    end
end
return purged
"""


def connect(url: str) -> tuple[redis.Redis, str]:
    """A client of a server, and the server's name without credentials. Nothing is contacted before first use."""
    scheme, _, rest = url.partition("://")
    client = redis.Redis.from_url(
        f"{'rediss' if scheme in {'rediss', 'valkeys'} else 'redis'}://{rest}",
        socket_timeout=_TIMEOUT_SECONDS,
        socket_connect_timeout=_TIMEOUT_SECONDS,
        health_check_interval=30,
    )
    return client, f"{scheme}://{urlsplit(url).hostname}"


class RedisStore:
    """A `JobStore` on a server.

    Args:
        url: `redis://`, `rediss://`, `valkey://` or `valkeys://` (with TLS). Nothing is contacted before first use.
    """

    def __init__(self, url: str) -> None:
        self._redis, self._label = connect(url)
        head = f"local P = '{_PREFIX}'\nlocal STEP = {_PRIORITY_STEP}\n{_END}"
        script: Callable[[str], Any] = lambda body: self._redis.register_script(head + body)  # noqa: E731
        self._add, self._claim, self._renew = script(_ADD), script(_CLAIM), script(_RENEW)
        self._release, self._report, self._finish = script(_RELEASE), script(_REPORT), script(_FINISH)
        self._cancel, self._delivery = script(_CANCEL), script(_DELIVERY)
        self._files, self._purge = script(_FILES), script(_PURGE)

    def close(self) -> None:
        self._redis.close()

    def add(self, job: Job, max_waiting: int, ended: Ending | None = None, expires_at: float = 0.0) -> int:
        start_by = "" if job.start_by is None else job.start_by
        arguments = [job.id, job.to_json(), job.priority, start_by, int(job.webhook is not None), max_waiting]
        end = ["", "", 0, 0] if ended is None else [ended.head_to_json(), ended.body, job.submitted_at, expires_at]
        with self._failures():
            outcome, number = self._add(args=[*arguments, *end])
        if outcome == b"full":
            raise StoreFull(int(number))
        return int(number)

    def get(self, job_id: str) -> JobRecord | None:
        with self._failures():
            fields: Any = self._redis.hgetall(f"{_PREFIX}job:{job_id}")
        if not fields:
            return None
        return JobRecord(
            Job.from_json(fields[b"job"]),
            fields[b"state"].decode(),
            int(fields[b"attempts"]),
            fields[b"cancel"] == b"1",
            Report.from_json(fields.get(b"report")),
            Ending.from_parts(fields[b"ending"], fields[b"body"]) if b"ending" in fields else None,
        )

    def position(self, job_id: str) -> int:
        with self._failures():
            rank: Any = self._redis.zrank(f"{_PREFIX}line", job_id)
        return int(rank or 0)

    def waiting(self) -> int:
        with self._failures():
            line: Any = self._redis.zcard(f"{_PREFIX}line")
            later: Any = self._redis.zcard(f"{_PREFIX}later")
        return int(line) + int(later)

    def claim(self, owner: str, now: float, lease_seconds: float, *, overdue: bool = False) -> JobRecord | None:
        with self._failures():
            job_id = self._claim(args=[owner, now, now + lease_seconds, int(overdue)])
        return None if job_id is None else self.get(job_id.decode())

    def renew(self, owner: str, job_ids: Collection[str], until: float) -> dict[str, bool]:
        with self._failures():
            flat = self._renew(args=[owner, until, *job_ids])
        return {flat[i].decode(): flat[i + 1] == b"1" for i in range(0, len(flat), 2)}

    def release(self, owner: str, job_id: str, not_before: float, *, counted: bool) -> bool:
        record = self.get(job_id)
        start_by = "" if record is None or record.job.start_by is None else record.job.start_by
        with self._failures():
            return bool(self._release(args=[owner, job_id, not_before, 0 if counted else 1, start_by]))

    def report(self, owner: str, job_id: str, report: Report) -> None:
        with self._failures():
            self._report(args=[owner, job_id, report.to_json()])

    def finish(self, owner: str, job_id: str, ending: Ending, now: float, expires_at: float) -> bool:
        with self._failures():
            return bool(self._finish(args=[owner, job_id, ending.head_to_json(), ending.body, now, expires_at]))

    def cancel(self, job_id: str, ending: Ending, now: float, expires_at: float) -> Cancelled | None:
        with self._failures():
            outcome = self._cancel(args=[job_id, ending.head_to_json(), ending.body, now, expires_at])
        return None if outcome is None else outcome.decode()

    def next_delivery(self, now: float, lease_seconds: float) -> Delivery | None:
        with self._failures():
            found = self._delivery(args=[now, now + lease_seconds])
        if found is None:
            return None
        record = self.get(found[0].decode())
        return None if record is None else Delivery(record, int(found[1]))

    def delivered(self, job_id: str) -> None:
        with self._failures():
            self._redis.zrem(f"{_PREFIX}deliveries", job_id)

    def retry_delivery(self, job_id: str, at: float) -> None:
        with self._failures():
            self._redis.hincrby(f"{_PREFIX}job:{job_id}", "delivery_attempt", 1)
            self._redis.zadd(f"{_PREFIX}deliveries", {job_id: at})

    def delete_later(self, names: Sequence[str], at: float) -> None:
        with self._failures():
            self._redis.zadd(f"{_PREFIX}files", dict.fromkeys(names, at))

    def due_files(self, now: float) -> list[str]:
        with self._failures():
            return [name.decode() for name in self._files(args=[now])]

    def secret(self, name: str, proposal: bytes) -> bytes:
        with self._failures():
            self._redis.hsetnx(f"{_PREFIX}secrets", name, proposal)
            value: Any = self._redis.hget(f"{_PREFIX}secrets", name)
        return bytes(value)

    def purge(self, now: float) -> int:
        with self._failures():
            return int(self._purge(args=[now]))

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise StoreError(f"{self._label}: {' '.join(str(error).split())}") from error
