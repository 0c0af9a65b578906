"""Idempotency keys in Redis or Valkey, where the replicas of one service share them.

A key is a string: held, it expires with its owner's lease; answered, with its images. What reads and then writes is one
Lua script.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from sana_service.jobs.keys import Answer, Held
from sana_service.jobs.record import StoreError
from sana_service.jobs.redis import connect

_PREFIX = "sana:once:"

# A value is a JSON object: fingerprint, owner, and the answer once there is one.
_CLAIM = """
local value = redis.call('GET', KEYS[1])
if value then return value end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""
_OURS = """
local value = redis.call('GET', KEYS[1])
local held = value and cjson.decode(value)
local working = held and held.owner == ARGV[1] and not held.answer
"""
_RENEW = _OURS + "if working then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end"
_RELEASE = _OURS + "if working then redis.call('DEL', KEYS[1]) end"
_KEEP = (
    _OURS
    + """
if held and held.owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
)


class RedisKeys:
    """A `KeyStore` on a server.

    Args:
        url: as `SANA_JOBS_URL`. Nothing is contacted before first use.
    """

    def __init__(self, url: str) -> None:
        self._redis, self._label = connect(url)
        self._claim, self._renew = self._redis.register_script(_CLAIM), self._redis.register_script(_RENEW)
        self._release, self._keep = self._redis.register_script(_RELEASE), self._redis.register_script(_KEEP)

    def claim(self, name: str, fingerprint: str, owner: str, lease_seconds: float) -> Held | None:
        value = json.dumps({"fingerprint": fingerprint, "owner": owner})
        found = self._run(self._claim, name, value, _milliseconds(lease_seconds))
        if found is None:
            return None
        held: dict[str, Any] = json.loads(found)
        answer = held.get("answer")
        return Held(held["fingerprint"], None if answer is None else Answer.from_json(answer))

    def renew(self, name: str, owner: str, lease_seconds: float) -> None:
        self._run(self._renew, name, owner, _milliseconds(lease_seconds))

    def keep(self, name: str, fingerprint: str, owner: str, answer: Answer, seconds: float) -> bool:
        value = json.dumps({"fingerprint": fingerprint, "owner": owner, "answer": answer.to_json()})
        return bool(self._run(self._keep, name, owner, value, _milliseconds(seconds)))

    def release(self, name: str, owner: str) -> None:
        self._run(self._release, name, owner)

    def close(self) -> None:
        self._redis.close()

    def _run(self, script: Any, name: str, *arguments: object) -> Any:
        with self._failures():
            return script(keys=[_PREFIX + name], args=arguments)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise StoreError(f"{self._label}: {' '.join(str(error).split())}") from error


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
