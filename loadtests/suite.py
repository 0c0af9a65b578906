"""Several scenarios, searches and comparisons in a row: parts that each start their servers, and resume.

The result of each step is in its part's file as soon as the step ends; a step that has one is not done
again, unless the suite file changed since. With a limit, a step only begins if it fits in the time that is
left, so that a machine lent for minutes does the whole in several calls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from loadtests import report, scenario
from loadtests.coldstart import cold_start, started, wait_for
from loadtests.compare import interleaved
from loadtests.cores import shared_cores
from loadtests.errors import HarnessError, was_interrupted
from loadtests.explore import at_rate, draw_curve, find_capacity, rate_of
from loadtests.floor import ARCHITECTURES
from loadtests.harness import Harness, Options
from loadtests.provenance import provenance
from loadtests.suitefile import Part, Step, Suite, fingerprint, load_step
from loadtests.trial import Floor, Say, judged, run_scenario

_READY_SECONDS = 480.0


@dataclass(frozen=True)
class Place:
    """Where and how a suite is run.

    Args:
        folder: for results.
        options: of the harness; its host is replaced by that of the server that is started.
        floor: for the share of the floor.
        say: told what happens.
        limit_seconds: no step begins that would end after them.
        again: run steps that have a result, too.
    """

    folder: Path
    options: Options
    floor: Floor | None
    say: Say
    limit_seconds: float | None = None
    again: bool = False


def run_suite(suite: Suite, place: Place) -> tuple[dict[str, Any], list[str]]:
    """Run the steps that have no result yet; the whole document, and the names of the parts that are left.

    A part whose server does not start is in the document as failed, and is run again by the next call.
    """
    begun = time.monotonic()
    place.folder.mkdir(parents=True, exist_ok=True)
    if place.again:
        for part in suite.parts:
            _file(place.folder, part).unlink(missing_ok=True)
    if place.floor is None:
        place = replace(place, floor=_measured_floor(suite, place.say))
    deadline = None if place.limit_seconds is None else begun + place.limit_seconds
    left: list[str] = []
    failed: list[dict[str, Any]] = []
    with shared_cores(suite.generator_cores, place.say) as server_cores:
        for part in suite.parts:
            run = _PartRun(suite, part, place, server_cores, deadline)
            try:
                if not run.finish():
                    left.append(part.name)
            except HarnessError as error:
                place.say(f"part {part.name}: {error}")
                failed.append({"type": "failed", "name": part.name, "failures": [str(error)]})
    document = assemble(suite, place.folder, place.options.host)
    return document | {"parts": document["parts"] + failed}, left


def _measured_floor(suite: Suite, say: Say) -> Floor | None:
    """The floor at the matrix rate of this machine; None where torch is not installed."""
    command = [sys.executable, "-m", "loadtests", "matrix-rate"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        say("the matrix rate could not be measured: no share of the floor")
        return None
    rate = json.loads(done.stdout.splitlines()[-1])
    origin = f"measured, {rate['size']} squared on {rate['device']}"
    return Floor(ARCHITECTURES[suite.architecture], rate["tflops"] * 1e12, origin)


def assemble(suite: Suite, folder: Path, host: str) -> dict[str, Any]:
    """The document of all steps that have a result."""
    done = [step for part in suite.parts for step in _done(suite, part, folder)]
    made = [step["provenance"] for step in done]
    return {
        "schema": report.SCHEMA,
        "title": suite.title,
        "provenance": (made[-1] if made else provenance(host))
        | {"steps": [{name: each[name] for name in ("made_at", "commit")} for each in made]},
        "parts": [step["document"] for step in done],
    }


def _file(folder: Path, part: Part) -> Path:
    return folder / f"part-{part.name}.json"


def _done(suite: Suite, part: Part, folder: Path) -> list[dict[str, Any]]:
    """The results of a part's first steps, as far as they are there and the suite says the same of them."""
    file = _file(folder, part)
    kept = json.loads(file.read_text(encoding="utf-8")).get("steps", []) if file.exists() else []
    pairs = zip(kept, part.steps, strict=False)
    return [each for each, _ in takewhile(lambda pair: pair[0]["fingerprint"] == fingerprint(suite, pair[1]), pairs)]


def _capacities(suite: Suite, folder: Path) -> dict[str, float]:
    """What was found so far, by the name of the scenario."""
    documents = [step["document"] for part in suite.parts for step in _done(suite, part, folder)]
    found = [each for each in documents if each["type"] == "capacity" and each["rate"]]
    return {each["scenario"]["name"]: each["rate"] for each in found}


class _PartRun:
    """The steps of a part that have no result yet.

    Args:
        suite, part: what to do.
        place: where.
        server_cores: on which servers run, None for all.
        deadline: of the monotonic clock, None for none.
    """

    def __init__(
        self, suite: Suite, part: Part, place: Place, server_cores: frozenset[int] | None, deadline: float | None
    ) -> None:
        self._suite, self._part, self._place = suite, part, place
        self._server_cores, self._deadline = server_cores, deadline
        self._done = _done(suite, part, place.folder)
        self._harness: Harness | None = None
        self._made: dict[str, Any] = {}

    def finish(self) -> bool:
        """Do the steps that fit in the time; whether none is left.

        Raises:
            HarnessError: a server did not start.
        """
        steps = self._part.steps[len(self._done) :]
        if not steps:
            self._place.say(f"part {self._part.name}: done before")
            return True
        if self._fits(steps[0]):
            start = self._suite.start_seconds if any(_needs_server(step) for step in steps) else 0.0
            expected = start + sum(step.seconds for step in steps)
            self._place.say(f"part {self._part.name}: about {expected:.0f} s")
        with ExitStack() as stack:
            for step in steps:
                if not self._fits(step):
                    return False
                if _needs_server(step) and self._harness is None:
                    self._start(stack)
                document = self._run(step)
                if was_interrupted(document):
                    raise KeyboardInterrupt
                self._keep(step, document)
        return True

    def _fits(self, step: Step) -> bool:
        if self._deadline is None:
            return True
        start = self._suite.start_seconds if _needs_server(step) and self._harness is None else 0.0
        return time.monotonic() + start + step.seconds <= self._deadline

    def _start(self, stack: ExitStack) -> None:
        host = stack.enter_context(self._server(self._suite.serve, f"server-{self._part.name}"))
        self._harness = Harness(replace(self._place.options, host=host))
        stack.callback(self._harness.close)
        self._made = provenance(host)

    @contextmanager
    def _server(self, command: str, name: str) -> Iterator[str]:
        """A server that is ready.

        Raises:
            HarnessError: it did not become ready.
        """
        log = self._place.folder / f"{name}.log"
        with started(command, log=log, environment=self._environment, cores=self._server_cores) as (host, process):
            wait_for(host, process, "/readyz", _READY_SECONDS)
            yield host

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | self._suite.environment

    def _keep(self, step: Step, document: dict[str, Any]) -> None:
        made = self._made or provenance(self._place.options.host)
        result = {"fingerprint": fingerprint(self._suite, step), "provenance": made, "document": document}
        self._done.append(report.hidden(result, self._place.options.api_key))
        file = _file(self._place.folder, self._part)
        written = file.with_suffix(".part")
        written.write_text(json.dumps({"steps": self._done}), encoding="utf-8")
        written.replace(file)

    def _run(self, step: Step) -> dict[str, Any]:
        load, place = load_step(step), self._place
        if isinstance(load, scenario.ColdStart):
            found = cold_start(load, place.options.api_key, place.say, self._environment, self._server_cores)
            return {"type": "cold_start", "name": load.name, **found}
        if self._harness is None:
            raise HarnessError(f"{load.name} needs a server")
        capacity = _capacities(self._suite, place.folder).get(step.capacity_of or load.name)
        if step.do == "search":
            found = find_capacity(self._harness, load, step.precision, place.say)
            return {"type": "capacity", "name": f"Capacity: {load.name}", **found}
        if step.do == "curve":
            drawn = draw_curve(self._harness, load, capacity or rate_of(load), step.shares, place.say)
            return {"type": "curve", "name": f"Latency and throughput: {load.name}", **drawn}
        if step.do == "compare":
            return self._compare(step, load, self._harness)
        if isinstance(load, scenario.Overload) and capacity:
            load = at_rate(load, capacity * load.factor)
        found = run_scenario(self._harness, load, place.folder, place.floor, place.say)
        return {"type": "scenario", "name": load.name, **found}

    def _compare(self, step: Step, load: scenario.Load, harness: Harness) -> dict[str, Any]:
        """The service as B, a baseline as A: a ratio below one is a latency that is shorter than the baseline's."""
        say = self._place.say
        with self._server(self._suite.baselines[step.against], f"baseline-{step.against}") as host:
            other = Harness(replace(self._place.options, host=host))
            try:

                def run(arm: str, number: int) -> dict[str, Any]:
                    say(f"{load.name}: {arm}, run {number + 1} of {4 * step.blocks}")
                    data = (other if arm == "A" else harness).run(load, number)
                    return judged(load, number, data, None)

                found = interleaved(run, step.blocks, step.margin)
            finally:
                other.close()
        names = {"a": f"the baseline {step.against!r}", "b": "this service"}
        return {
            "type": "comparison",
            "name": f"{load.name} against {step.against!r}",
            "scenario": load.model_dump(mode="json"),
            **names,
            **found,
        }


def _needs_server(step: Step) -> bool:
    return load_step(step).kind != "cold_start"
