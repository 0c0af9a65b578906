"""Searches and curves with real runs: `search`'s functions, asked of a server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from loadtests import scenario
from loadtests.client import Client
from loadtests.errors import HarnessError, reason
from loadtests.harness import Harness
from loadtests.measure import generator_figures, meets
from loadtests.records import Record
from loadtests.schedule import Source
from loadtests.search import HOPELESS, Found, Judge, Probe, knee, largest_rate
from loadtests.session import Session
from loadtests.trial import Say, run_probe

_LEAST_SHARE, _MOST_SHARE = 1 / 64, 64.0
_SETTLE_SECONDS = 60.0
_SETTLE_TRIES = 100
_TRIES = 3


def at_rate(load: scenario.Load, rate: float) -> scenario.Load:
    """The same scenario with another rate.

    Raises:
        ScenarioError: its arrivals have no single rate.
    """
    if isinstance(load, scenario.ClosedLoop) or not isinstance(
        load.arrivals, scenario.Poisson | scenario.Gamma | scenario.Constant
    ):
        raise scenario.ScenarioError(f"{load.name}: a search needs poisson, gamma or constant arrivals")
    changed = load.arrivals.model_copy(update={"rate": rate})
    copied: scenario.Load = load.model_copy(update={"arrivals": changed})
    return copied


class Prober:
    """Tries rates with a scenario.

    Args:
        harness: sends the requests.
        load: the scenario whose rate is changed.
        say: told of each rate.
    """

    def __init__(self, harness: Harness, load: scenario.Load, say: Say) -> None:
        self._harness, self._load, self._say = harness, load, say
        self._tried = 0
        self._overloaded = False
        self.probes: list[Probe] = []
        self.invalid: list[str] = []

    def __call__(self, rate: float, early: bool = True) -> Probe:
        """Try a rate, again where the generator was late and that decides.

        A rate that keeps the objective although the generator was late keeps it all the more.

        Args:
            rate: requests a second.
            early: end the run as soon as it cannot keep the objective any more.
        """
        for _ in range(_TRIES):
            probe, late = self._try(rate, early)
            if not late or (early and probe.keeps):
                break
        else:
            self.invalid.append(f"the load generator was late at {rate:.3g} a second")
        self.probes.append(probe)
        self._say(f"{self._load.name}: {rate:.4g} a second {_outcome(probe, self._load)}")
        return probe

    def _try(self, rate: float, early: bool) -> tuple[Probe, bool]:
        """One run, and whether the generator was late."""
        load = at_rate(self._load, rate)
        times = Source(load, self._tried, "").times()
        judge = Judge(load.objective, int((times >= load.warm_up_seconds).sum()), load.warm_up_seconds)

        def ask(record: Record | None, session: Session) -> str | None:
            if not early:
                return None
            return judge.answered(record) if record else judge.waiting(session.now, session.outstanding())

        self._settle(load)
        data, figures = run_probe(self._harness, load, self._tried, ask)
        self._tried += 1
        stopped_early = data.stop_reason == HOPELESS
        if data.stop_reason is not None and not stopped_early:
            raise HarnessError(data.stop_reason)
        latency = figures["latency_seconds"]
        probe = Probe(
            rate=rate,
            keeps=figures["keeps_objective"] and not stopped_early,
            throughput=figures["requests_per_second"],
            p50=latency.get("p50"),
            p99=latency.get("p99") or latency.get("max"),
            stopped_early=stopped_early,
        )
        self._overloaded = not probe.keeps
        return probe, not generator_figures(data.records, data.lateness, latency.get("p50"))["valid"]

    def _settle(self, load: scenario.Load) -> None:
        """Wait until what an earlier probe left in the queue is worked off: one request is answered in time again."""
        if not self._overloaded:
            return
        client = Client(self._harness.options.host, self._harness.options.api_key, _SETTLE_SECONDS)
        begun = time.perf_counter()
        source = Source(load, self._tried, secrets.token_hex(4))
        try:
            for index in range(_SETTLE_TRIES):
                record = client.ask(source.planned(index), begun)
                if meets(record, load.objective) or time.perf_counter() - begun > _SETTLE_SECONDS:
                    break
        finally:
            client.close()


def _outcome(probe: Probe, load: scenario.Load) -> str:
    if probe.stopped_early:
        return "misses the objective, stopped early"
    verb = "keeps" if probe.keeps else "misses"
    shown = f", p99 {probe.p99 * 1000:.0f} ms" if probe.p99 is not None else ""
    return f"{verb} the objective of {load.objective.share:.0%}{shown}"


def find_capacity(harness: Harness, load: scenario.Load, precision: float = 0.03, say: Say = print) -> dict[str, Any]:
    """The largest rate that keeps the objective, as a document."""
    prober = Prober(harness, load, say)
    start = rate_of(load)
    failures = []
    try:
        found = largest_rate(prober, start, start * _LEAST_SHARE, start * _MOST_SHARE, precision)
    except (HarnessError, KeyboardInterrupt) as error:
        failures.append(reason(error))
        kept = [probe.rate for probe in prober.probes if probe.keeps]
        found = Found(max(kept, default=0.0), None, tuple(prober.probes))
    if not found.rate and not failures:
        failures.append("no rate that was tried keeps the objective")
    return {
        "scenario": load.model_dump(mode="json"),
        "rate": found.rate,
        "ceiling": found.ceiling,
        "precision": precision,
        "probes": [asdict(probe) for probe in found.probes],
        "invalid": prober.invalid,
        "failures": failures,
    }


def draw_curve(
    harness: Harness, load: scenario.Load, capacity: float, shares: Sequence[float], say: Say = print
) -> dict[str, Any]:
    """Latency and throughput at shares of a capacity, and the knee, as a document."""
    prober = Prober(harness, load, say)
    failures = []
    try:
        for share in shares:
            prober(share * capacity, early=False)
    except (HarnessError, KeyboardInterrupt) as error:
        failures.append(reason(error))
    probes = prober.probes
    usable = [probe for probe in probes if probe.throughput and probe.p50]
    best = knee([(probe.throughput or 0.0, probe.p50 or 0.0) for probe in usable])
    return {
        "scenario": load.model_dump(mode="json"),
        "capacity": capacity,
        "points": [asdict(probe) for probe in probes],
        "knee": None if best is None else asdict(usable[best]),
        "invalid": prober.invalid,
        "failures": failures,
    }


def rate_of(load: scenario.Load) -> float:
    """The single rate of a scenario.

    Raises:
        ScenarioError: its arrivals have none.
    """
    at_rate(load, 1.0)
    arrivals: Any = getattr(load, "arrivals", None)
    return float(arrivals.rate)
