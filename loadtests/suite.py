"""Several scenarios, searches and comparisons in a row: parts that each start their servers, and resume.

A part's result is a file; a part that has one is not run again, unless the suite file changed since. With
a limit, a part only begins if it fits in the time that is left, so that a machine lent for minutes does
the whole in several calls.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from loadtests import coldstart, report, scenario
from loadtests.compare import interleaved
from loadtests.explore import at_rate, draw_curve, find_capacity
from loadtests.harness import Harness, HarnessError, Options
from loadtests.provenance import provenance
from loadtests.trial import Floor, Say, judged, run_scenario

_HERE = Path(__file__).resolve().parent
_READY_SECONDS = 480.0


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(_Model):
    """One thing to do: what, with which scenario, and what of it is changed."""

    do: Literal["run", "search", "curve", "compare"]
    scenario: str
    changes: dict[str, Any] = {}
    precision: PositiveFloat = 0.03
    shares: tuple[PositiveFloat, ...] = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
    against: str = "plain"
    blocks: PositiveInt = 1
    margin: PositiveFloat = 0.05


class Part(_Model):
    """Steps that share their servers."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    seconds: PositiveFloat
    """How long it takes, start included; for the limit."""
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]


class Suite(_Model):
    """A file of `suites/`."""

    title: str
    serve: str
    """Starts the service; `{port}` stands for a free port."""
    environment: dict[str, str] = {}
    baselines: dict[str, str] = {}
    architecture: Literal["sana", "bundled"] = "sana"
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]


def load_suite(path: Path) -> Suite:
    """A suite, with each scenario of it checked.

    Raises:
        ScenarioError: a line for each fault.
    """
    try:
        suite = Suite.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise scenario.ScenarioError(f"{path}: {error}") from error
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        raise scenario.ScenarioError("\n".join(lines)) from error
    for part in suite.parts:
        for step in part.steps:
            load_step(step)
            if step.do == "compare" and step.against not in suite.baselines:
                raise scenario.ScenarioError(f"{path}: {part.name}: there is no baseline {step.against!r}")
    return suite


def load_step(step: Step) -> scenario.Load | scenario.ColdStart:
    """The scenario of a step with its changes.

    Raises:
        ScenarioError: it is wrong.
    """
    path = _HERE / "scenarios" / step.scenario
    loaded = scenario.load(path)
    document = loaded.model_dump(mode="json", exclude_unset=True)
    return scenario.parse(_merged(document, step.changes), str(path))


def _merged(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(document)
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


@dataclass(frozen=True)
class Place:
    """Where and how a suite is run.

    Args:
        folder: for results.
        options: of the harness; its host is replaced by that of the server that is started.
        floor: for the share of the floor.
        say: told what happens.
        limit_seconds: no part begins that would end after them.
    """

    folder: Path
    options: Options
    floor: Floor | None
    say: Say
    limit_seconds: float | None = None


def run_suite(path: Path, place: Place) -> tuple[dict[str, Any], list[str]]:
    """Run the parts that have no result yet; the whole document, and the names of the parts that are left.

    Raises:
        ScenarioError: the suite is wrong.
        HarnessError: a server does not start; finished parts keep their results.
    """
    suite = load_suite(path)
    place.folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    left = []
    for part in suite.parts:
        file = place.folder / f"part-{part.name}.json"
        if _finished(file, suite, part):
            place.say(f"part {part.name}: done before")
            continue
        remaining = None if place.limit_seconds is None else place.limit_seconds - (time.monotonic() - begun)
        if remaining is not None and part.seconds > remaining:
            left.append(part.name)
            continue
        place.say(f"part {part.name}: about {part.seconds:.0f} s")
        known = _capacity(_results(suite, place.folder))
        done = _run_part(suite, part, place, known)
        result = {"fingerprint": fingerprint(suite, part), "seconds": time.monotonic() - begun, **done}
        file.write_text(json.dumps(report.hidden(result, place.options.api_key)), encoding="utf-8")
    return assemble(suite, place.folder, place.options.host), left


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


def fingerprint(suite: Suite, part: Part) -> str:
    """Changes when what a part does changes."""
    scenarios = [load_step(step).model_dump(mode="json") for step in part.steps]
    whole = [part.model_dump(mode="json"), scenarios, suite.serve, suite.environment, suite.baselines]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _finished(file: Path, suite: Suite, part: Part) -> bool:
    if not file.exists():
        return False
    return bool(json.loads(file.read_text(encoding="utf-8"))["fingerprint"] == fingerprint(suite, part))


def _results(suite: Suite, folder: Path) -> list[dict[str, Any]]:
    files = [folder / f"part-{part.name}.json" for part in suite.parts]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def _capacity(results: list[dict[str, Any]]) -> float | None:
    rates = [part["rate"] for each in results for part in each["parts"] if part["type"] == "capacity" and part["rate"]]
    return rates[-1] if rates else None


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


def _run_part(suite: Suite, part: Part, place: Place, capacity: float | None) -> dict[str, Any]:
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
            document = _run_step(suite, step, place, harness, capacity)
            if document["type"] == "capacity" and document["rate"]:
                capacity = document["rate"]
            done.append(document)
    return {"provenance": made, "parts": done}


def _run_step(
    suite: Suite, step: Step, place: Place, harness: Harness | None, capacity: float | None
) -> dict[str, Any]:
    load = load_step(step)
    if isinstance(load, scenario.ColdStart):
        started = coldstart.cold_start(load, place.options.api_key, place.say, os.environ | suite.environment)
        return {"type": "cold_start", "name": load.name, **started}
    if harness is None:
        raise HarnessError(f"{load.name} needs a server")
    if step.do == "search":
        found = find_capacity(harness, load, step.precision, place.say)
        return {"type": "capacity", "name": f"Capacity: {load.name}", **found}
    if step.do == "curve":
        drawn = draw_curve(harness, load, capacity or getattr(load, "arrivals").rate, step.shares, place.say)  # noqa: B009
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
