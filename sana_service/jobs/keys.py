"""Where idempotency keys are kept, and what a store says of one. In memory here, in Redis in keys_redis.py."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

_MAX_MEMORY_BYTES = 64 * 1024 * 1024
_ENTRY_BYTES = 1024
_SWEEP_SECONDS = 1.0


@dataclass(frozen=True)
class Answer:
    """What is kept of a served request.

    Args:
        body: JSON of the response model.
        headers: of the response.
    """

    body: str
    headers: dict[str, str]

    def to_json(self) -> str:
        return json.dumps({"body": self.body, "headers": self.headers})

    @classmethod
    def from_json(cls, text: str | bytes) -> Answer:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Held:
    """A key that is taken.

    Args:
        fingerprint: of the request that it came with.
        answer: None while somebody works on it.
    """

    fingerprint: str
    answer: Answer | None


class KeyStore(Protocol):
    """Where keys are kept. All methods block, are atomic, and raise `StoreError` where the store does not answer."""

    def claim(self, name: str, fingerprint: str, owner: str, lease_seconds: float) -> Held | None:
        """Take a free key; otherwise say who has it."""

    def renew(self, name: str, owner: str, lease_seconds: float) -> None:
        """Hold it longer, where it is still the owner's."""

    def keep(self, name: str, fingerprint: str, owner: str, answer: Answer, seconds: float) -> bool:
        """Keep an answer; False where the key is another's by now."""

    def release(self, name: str, owner: str) -> None:
        """Free it, where it is still the owner's."""

    def close(self) -> None:
        """Give back what the store holds open."""


@dataclass
class _Entry:
    fingerprint: str
    owner: str
    answer: Answer | None
    until: float
    size: int = _ENTRY_BYTES


class MemoryKeys:
    """Keys of one process: enough for one replica that is not restarted in between.

    Args:
        max_bytes: of answers; the oldest are forgotten first.
        clock: seconds.
    """

    def __init__(self, max_bytes: int = _MAX_MEMORY_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        self._swept_at = -math.inf

    def claim(self, name: str, fingerprint: str, owner: str, lease_seconds: float) -> Held | None:
        with self._lock:
            self._forget()
            entry = self._entries.get(name)
            if entry is not None and entry.until > self._clock():
                return Held(entry.fingerprint, entry.answer)
            self._drop(name)
            self._put(name, _Entry(fingerprint, owner, None, self._clock() + lease_seconds))
            return None

    def renew(self, name: str, owner: str, lease_seconds: float) -> None:
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None and entry.owner == owner and entry.answer is None:
                entry.until = self._clock() + lease_seconds

    def keep(self, name: str, fingerprint: str, owner: str, answer: Answer, seconds: float) -> bool:
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None and entry.owner != owner:
                return False
            self._drop(name)
            size = _ENTRY_BYTES + len(answer.body.encode())
            self._put(name, _Entry(fingerprint, owner, answer, self._clock() + seconds, size))
            return True

    def release(self, name: str, owner: str) -> None:
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None and entry.owner == owner and entry.answer is None:
                self._drop(name)

    def close(self) -> None:
        """Nothing is held open."""

    def _put(self, name: str, entry: _Entry) -> None:
        self._entries[name] = entry
        self._bytes += entry.size

    def _drop(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        self._bytes -= 0 if entry is None else entry.size

    def _forget(self) -> None:
        """Drop what has expired, and the oldest answers beyond the limit; what is worked on stays."""
        now = self._clock()
        if now < self._swept_at + _SWEEP_SECONDS and self._bytes <= self._max_bytes:
            return
        self._swept_at = now
        for name in [name for name, entry in self._entries.items() if entry.until <= now]:
            self._drop(name)
        answered = [name for name, entry in self._entries.items() if entry.answer is not None]
        for name in answered:
            if self._bytes <= self._max_bytes:
                return
            self._drop(name)
