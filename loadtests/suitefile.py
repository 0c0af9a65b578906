"""Suite files: which scenarios, searches and comparisons make a whole, in which parts. TOML, checked by pydantic."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from loadtests import scenario

_HERE = Path(__file__).resolve().parent


def _a_program(command: str) -> str:
    """A command is started by `exec`, which knows no assignments."""
    if re.match(r"\s*\w+=", command):
        raise ValueError("begins with a variable; variables belong in `environment`")
    return command


Command = Annotated[str, AfterValidator(_a_program)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(_Model):
    """One thing to do: what, with which scenario, and what of it is changed."""

    do: Literal["run", "search", "curve", "compare"]
    scenario: str
    seconds: PositiveFloat
    """How long it takes, a baseline's start included, the service's not; for the limit."""
    changes: dict[str, Any] = {}
    precision: PositiveFloat = 0.03
    shares: tuple[PositiveFloat, ...] = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
    capacity_of: str | None = None
    """Name of the searched scenario whose capacity a curve or an overload is about; by default its own."""
    against: str = "plain"
    blocks: PositiveInt = 1
    margin: PositiveFloat = 0.05


class Part(_Model):
    """Steps that share their servers."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]


class Suite(_Model):
    """A file of `suites/`."""

    title: str
    serve: Command
    """Starts the service; `{port}` stands for a free port."""
    start_seconds: PositiveFloat = 60
    """How long that takes; for the limit."""
    generator_cores: NonNegativeInt = 0
    """Cores that are kept for the generator; the servers get the others."""
    environment: dict[str, str] = {}
    baselines: dict[str, Command] = {}
    architecture: Literal["sana", "bundled"] = "sana"
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]


def load_suite(path: Path) -> Suite:
    """A suite, with each scenario of it checked.

    Raises:
        ScenarioError: a line for each fault.
    """
    try:
        suite = Suite.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
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


def fingerprint(suite: Suite, step: Step) -> str:
    """Changes when what a step does changes."""
    wanted = step.model_dump(mode="json", exclude={"seconds"})
    started = suite.model_dump(mode="json", include={"serve", "environment", "baselines", "generator_cores"})
    whole = [wanted, load_step(step).model_dump(mode="json"), started]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
