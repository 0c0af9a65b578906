"""One run in one process: sends requests when they are due and keeps what became of them.

The dispatcher never waits for an answer: each request has a greenlet of its own, and its latency
counts from when it was due. A heartbeat in the same event loop measures how late the process is, so
that a generator that cannot keep up is seen also where it reads answers late.
"""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent.lock import Semaphore
from gevent.pool import Pool

from loadtests import scenario
from loadtests.client import CONNECTION_FAULTS, Client
from loadtests.records import UNANSWERED, Record
from loadtests.schedule import Planned, Source

# gevent's timers count whole milliseconds, upwards: the last one is waited for by yielding.
_SPIN_SECONDS = 0.001
_HEARTBEAT_SECONDS = 0.02
_FAULTS_BEFORE_PROBE = 3
_PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class Order:
    """What a process is told to do; plain values, so that it travels to workers.

    Args:
        host: the server.
        document: the scenario as JSON values.
        repeat: number of the run.
        mark: see `Source`.
        share, of: this process sends requests number `share`, `share + of`, and so on.
        start_at: seconds since the epoch at which the run starts.
    """

    host: str
    document: dict[str, Any]
    repeat: int
    mark: str
    share: int
    of: int
    start_at: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Session:
    """A run.

    Args:
        order: what to do.
        api_key: never part of an order or a record.
        on_record: called with each record.
    """

    def __init__(self, order: Order, api_key: str, on_record: Callable[[Record], None]) -> None:
        load = scenario.parse(order.document, "scenario")
        if isinstance(load, scenario.ColdStart):
            raise TypeError("a cold start is no load")
        self.load: scenario.Load = load
        self.stop_reason: str | None = None
        self.lateness: list[float] = []
        self._dispatched = False
        self._order = order
        self._source = Source(load, order.repeat, order.mark)
        self._client = Client(order.host, api_key, load.answer_timeout_seconds)
        self._on_record = on_record
        self._clock = time.perf_counter() + order.start_at - time.time()
        self._pool = Pool()
        self._waiting: dict[int, tuple[Planned, float]] = {}
        self._next_index = order.share
        self._index_lock = Semaphore()
        self._faults_in_a_row = 0
        self._heartbeat = gevent.spawn(self._beat)
        # A collection in the middle of a run would be taken for the server's latency.
        gc.collect()
        gc.freeze()
        gc.disable()

    @property
    def now(self) -> float:
        """Seconds since the start of the run."""
        return time.perf_counter() - self._clock

    def outstanding(self) -> list[float]:
        """When the requests that are not answered yet were due."""
        return [due for _, due in self._waiting.values()]

    def dispatch(self) -> None:
        """Open loop: send each request of this process's share when it is due, then wait for the answers."""
        try:
            self._send_all()
        except Exception as error:
            self._stop_for(error)
        finally:
            self._dispatched = True

    def _send_all(self) -> None:
        times = self._source.times()
        for index in range(self._order.share, len(times), self._order.of):
            due = float(times[index])
            planned = self._source.planned(index, due)
            self._wait_until(due)
            if self.stop_reason:
                break
            self._waiting[index] = (planned, due)
            self._pool.spawn(self._ask, planned, due)
        if not self.stop_reason:
            self._wait_until(self.load.duration_seconds)
        self._drain()

    @property
    def finished(self) -> bool:
        """Nothing will be sent any more, and nothing is waited for."""
        if not isinstance(self.load, scenario.ClosedLoop):
            return self._dispatched
        if self.stop_reason:
            return True
        late = self.now - self.load.duration_seconds
        return late > self.load.answer_timeout_seconds or (late > 0 and not self._waiting)

    def loop(self) -> None:
        """Closed loop, one user of it: ask, wait for the answer, ask again, until the time is over."""
        try:
            self._ask_in_turn()
        except Exception as error:
            self._stop_for(error)

    def _ask_in_turn(self) -> None:
        self._wait_until(0.0)
        while self.now < self.load.duration_seconds and not self.stop_reason:
            with self._index_lock:
                index = self._next_index
                self._next_index += self._order.of
            planned = self._source.planned(index)
            self._waiting[index] = (planned, self.now)
            self._ask(planned, None)

    def _drain(self) -> None:
        """Wait for what is in flight as long as answers may take, then give it up."""
        deadline = self.now + self.load.answer_timeout_seconds
        while self._waiting and self.now < deadline and not self.stop_reason:
            gevent.sleep(0.01)
        self.give_up()

    def give_up(self) -> None:
        """Record what is still in flight as unanswered."""
        left = dict(self._waiting)
        self._waiting.clear()
        self._pool.kill(block=False)
        for planned, due in left.values():
            self._on_record(_unanswered(planned, due, self.now))

    def stop(self, reason: str) -> None:
        """End the run early; the first reason counts."""
        self.stop_reason = self.stop_reason or reason

    def _stop_for(self, error: Exception) -> None:
        """End the run for a fault of the generator, which Locust would meet by starting over, for ever."""
        self.stop(f"the load generator failed: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Forget what is in flight: nobody keeps its record any more."""
        self._waiting.clear()
        self._pool.kill(block=False)
        self._heartbeat.kill()
        self._client.close()
        gc.enable()
        gc.unfreeze()

    def _wait_until(self, due: float) -> None:
        while (left := due - self.now) > 0 and not self.stop_reason:
            # Not longer than this, so that a stop is seen.
            gevent.sleep(min(left - _SPIN_SECONDS, 0.2) if left > _SPIN_SECONDS else 0)

    def _ask(self, planned: Planned, due: float | None) -> None:
        record = self._client.ask(planned, self._clock, due)
        if self._waiting.pop(planned.index, None) is None:
            return
        self._on_record(record)
        self._faults_in_a_row = self._faults_in_a_row + 1 if record.error in CONNECTION_FAULTS else 0
        if self._faults_in_a_row >= _FAULTS_BEFORE_PROBE and not self.stop_reason:
            self._faults_in_a_row = 0
            fault = probe(self._order.host)
            if fault:
                self.stop(f"{self._order.host} stopped answering {record.done:.1f} s into the run: {fault}")

    def _beat(self) -> None:
        while True:
            started = time.perf_counter()
            gevent.sleep(_HEARTBEAT_SECONDS)
            self.lateness.append(time.perf_counter() - started - _HEARTBEAT_SECONDS)


def _unanswered(planned: Planned, due: float, now: float) -> Record:
    expected = planned.expected
    return Record(
        index=planned.index,
        endpoint=planned.endpoint,
        width=expected.width,
        height=expected.height,
        output_format=expected.output_format,
        num_images=expected.num_images,
        steps=planned.body["num_inference_steps"],
        intended=due,
        sent=due,
        done=max(now, due),
        error=UNANSWERED,
    )


def probe(host: str) -> str | None:
    """Why no connection can be made, None if one can."""
    parts = urlsplit(host)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=_PROBE_SECONDS):
            return None
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
