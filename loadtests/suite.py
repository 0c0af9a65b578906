"""Several scenarios, searches and comparisons in a row: parts that each start their servers, and resume.

A part's result is a file; a part that has one is not run again, unless the suite file changed since. With
a limit, a part only begins if it fits in the time that is left, so that a machine lent for minutes does
the whole in several calls.
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
from pathlib import Path
from typing import Any

from loadtests import coldstart, report, scenario
from loadtests.compare import interleaved
from loadtests.explore import at_rate, draw_curve, find_capacity, rate_of
from loadtests.floor import ARCHITECTURES
from loadtests.harness import Harness, HarnessError, Options
from loadtests.provenance import provenance
from loadtests.suitefile import Part, Step, Suite, fingerprint, load_step, load_suite
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
        limit_seconds: no part begins that would end after them.
        again: run parts that have a result, too.
    """

    folder: Path
    options: Options
    floor: Floor | None
    say: Say
    limit_seconds: float | None = None
    again: bool = False


def run_suite(path: Path, place: Place) -> tuple[dict[str, Any], list[str]]:
    """Run the parts that have no result yet; the whole document, and the names of the parts that are left.

    A part whose server does not start is in the document as failed, and is run again by the next call.

    Raises:
        ScenarioError: the suite is wrong.
    """
    suite = load_suite(path)
    place.folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    if place.floor is None:
        place = replace(place, floor=_measured_floor(suite, place.say))
    left: list[str] = []
    failed: list[dict[str, Any]] = []
    for part in suite.parts:
        file = place.folder / f"part-{part.name}.json"
        if not place.again and _finished(file, suite, part):
            place.say(f"part {part.name}: done before")
            continue
        remaining = None if place.limit_seconds is None else place.limit_seconds - (time.monotonic() - begun)
        if remaining is not None and part.seconds > remaining:
            left.append(part.name)
            continue
        place.say(f"part {part.name}: about {part.seconds:.0f} s")
        try:
            done = _run_part(suite, part, place, _capacities(_results(suite, place.folder)))
        except HarnessError as error:
            place.say(f"part {part.name}: {error}")
            failed.append({"type": "failed", "name": part.name, "failures": [str(error)]})
            continue
        result = {"fingerprint": fingerprint(suite, part), "seconds": time.monotonic() - begun, **done}
        file.write_text(json.dumps(report.hidden(result, place.options.api_key)), encoding="utf-8")
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
    """The document of all parts that have a result."""
    results = _results(suite, folder)
    made = [each["provenance"] for each in results]
    return {
        "schema": report.SCHEMA,
        "title": suite.title,
        "provenance": (made[-1] if made else provenance(host)) | {"parts": [each["made_at"] for each in made]},
        "parts": [part for each in results for part in each["parts"]],
    }


def _finished(file: Path, suite: Suite, part: Part) -> bool:
    if not file.exists():
        return False
    return bool(json.loads(file.read_text(encoding="utf-8"))["fingerprint"] == fingerprint(suite, part))


def _results(suite: Suite, folder: Path) -> list[dict[str, Any]]:
    files = [folder / f"part-{part.name}.json" for part in suite.parts]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def _capacities(results: list[dict[str, Any]]) -> dict[str, float]:
    """What was found so far, by the name of the scenario."""
    found = [part for each in results for part in each["parts"] if part["type"] == "capacity" and part["rate"]]
    return {part["scenario"]["name"]: part["rate"] for part in found}


@contextmanager
def _server(suite: Suite, command: str, place: Place, name: str) -> Iterator[str]:
    """A server that is ready.

    Raises:
        HarnessError: it did not become ready.
    """
    log = place.folder / f"{name}.log"
    environment = os.environ | suite.environment
    with coldstart.started(command, log=log, environment=environment) as (host, process):
        coldstart.wait_for(host, process, "/readyz", _READY_SECONDS)
        yield host


def _run_part(suite: Suite, part: Part, place: Place, capacities: dict[str, float]) -> dict[str, Any]:
    done: list[dict[str, Any]] = []
    needs_server = any(load_step(step).kind != "cold_start" for step in part.steps)
    with ExitStack() as stack:
        host, made = "", provenance(place.options.host)
        if needs_server:
            host = stack.enter_context(_server(suite, suite.serve, place, f"server-{part.name}"))
            made = provenance(host)
        harness = Harness(replace(place.options, host=host)) if host else None
        if harness:
            stack.callback(harness.close)
        for step in part.steps:
            document = _run_step(suite, step, place, harness, capacities)
            if document["type"] == "capacity" and document["rate"]:
                capacities[document["scenario"]["name"]] = document["rate"]
            done.append(document)
    return {"provenance": made, "parts": done}


def _run_step(
    suite: Suite, step: Step, place: Place, harness: Harness | None, capacities: dict[str, float]
) -> dict[str, Any]:
    load = load_step(step)
    if isinstance(load, scenario.ColdStart):
        started = coldstart.cold_start(load, place.options.api_key, place.say, os.environ | suite.environment)
        return {"type": "cold_start", "name": load.name, **started}
    if harness is None:
        raise HarnessError(f"{load.name} needs a server")
    capacity = capacities.get(step.capacity_of or load.name)
    if step.do == "search":
        found = find_capacity(harness, load, step.precision, place.say)
        return {"type": "capacity", "name": f"Capacity: {load.name}", **found}
    if step.do == "curve":
        drawn = draw_curve(harness, load, capacity or rate_of(load), step.shares, place.say)
        return {"type": "curve", "name": f"Latency and throughput: {load.name}", **drawn}
    if step.do == "compare":
        return _compare(suite, step, place, harness, load)
    if isinstance(load, scenario.Overload) and capacity:
        load = at_rate(load, capacity * load.factor)
    return {"type": "scenario", "name": load.name, **run_scenario(harness, load, place.folder, place.floor, place.say)}


def _compare(suite: Suite, step: Step, place: Place, harness: Harness, load: scenario.Load) -> dict[str, Any]:
    """The service as B against a baseline as A: a ratio below one is a latency that is shorter than the baseline's."""
    with _server(suite, suite.baselines[step.against], place, f"baseline-{step.against}") as host:
        other = Harness(replace(place.options, host=host))
        try:

            def run(arm: str, number: int) -> dict[str, Any]:
                place.say(f"{load.name}: {arm}, run {number + 1} of {4 * step.blocks}")
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
