"""Scenario files: what is asked, when, for how long, and what counts as good. TOML, checked by pydantic.

A file that is wrong in any way is a `ScenarioError` whose text has one line for each fault: file,
field, bound. Nothing is guessed and nothing silently corrected.
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from loadtests.contract import DEFAULT_STEPS, Endpoint, OutputFormat, parse_size


class ScenarioError(Exception):
    """A scenario file cannot be used; the text has a line for each fault."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _readable_size(value: str) -> str:
    parse_size(value)
    return value


Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=100_000)]
"""Requests a second; more than any generator sends, and few enough to be drawn before a run."""
Size = Annotated[str, AfterValidator(_readable_size)]


class RequestClass(_Part):
    """One kind of request of the mix."""

    endpoint: Endpoint
    weight: PositiveFloat = 1.0
    image_size: Size = "square_hd"
    num_inference_steps: Annotated[int, Field(ge=1, le=50)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=20)] = 5.0
    num_images: Annotated[int, Field(ge=1, le=4)] = 1
    output_format: OutputFormat = "jpeg"
    enable_safety_checker: bool = True
    prompt_reuse: Share = 0.0
    seed_mode: Literal["distinct", "fixed", "server"] = "distinct"
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    cancel_share: Share = 0.0
    cancel_after_seconds: PositiveFloat = 0.5
    slow_share: Share = 0.0
    slow_bytes_per_second: PositiveInt = 20_000

    @property
    def steps(self) -> int:
        return self.num_inference_steps or DEFAULT_STEPS[self.endpoint]

    @property
    def size(self) -> tuple[int, int]:
        return parse_size(self.image_size)


class Poisson(_Part):
    process: Literal["poisson"]
    rate: Rate


class Gamma(_Part):
    process: Literal["gamma"]
    rate: Rate
    burstiness: PositiveFloat


class Constant(_Part):
    process: Literal["constant"]
    rate: Rate


class Step(_Part):
    process: Literal["step"]
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)]
    seconds_each: PositiveFloat


class Spike(_Part):
    process: Literal["spike"]
    rate: Rate
    peak_rate: Rate
    at_seconds: Annotated[float, Field(ge=0)]
    for_seconds: PositiveFloat


class Ramp(_Part):
    process: Literal["ramp"]
    first_rate: Annotated[float, Field(ge=0, le=100_000)]
    last_rate: Rate


class Trace(_Part):
    process: Literal["trace"]
    file: Path
    speed: PositiveFloat = 1.0


Arrivals = Annotated[Poisson | Gamma | Constant | Step | Spike | Ramp | Trace, Field(discriminator="process")]


class Objective(_Part):
    """What is good: this share of an endpoint's requests answered rightly within these seconds."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.99
    generate_seconds: PositiveFloat = 2.0
    sprint_seconds: PositiveFloat = 0.5

    def seconds(self, endpoint: Endpoint) -> float:
        return self.generate_seconds if endpoint == "generate" else self.sprint_seconds


class Prices(_Part):
    """Prices in one currency, for the cost of a thousand images."""

    machine_per_hour: PositiveFloat | None = None
    billable_unit: PositiveFloat | None = None


class Truth(_Part):
    """How the pictures are checked after the load."""

    sample: Annotated[int, Field(ge=0, le=64)] = 4
    repeated: Annotated[int, Field(ge=0, le=16)] = 1
    tolerance: Annotated[int, Field(ge=0, le=255)] = 3
    differing_share: Share = 0.001


class _Common(_Part):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    repeats: Annotated[int, Field(ge=1, le=20)] = 1
    objective: Objective = Objective()
    prices: Prices = Prices()
    truth: Truth = Truth()
    answer_timeout_seconds: PositiveFloat = 330.0
    allowed_error_share: Share = 0.0


class _Load(_Common):
    duration_seconds: PositiveFloat
    warm_up_seconds: Annotated[float, Field(ge=0)] = 0.0
    requests: Annotated[tuple[RequestClass, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _leaves_something(self) -> _Load:
        if self.warm_up_seconds >= self.duration_seconds:
            raise ValueError(f"warm_up_seconds must be below duration_seconds, {self.duration_seconds:g}")
        return self


class _Open(_Load):
    arrivals: Arrivals


class SingleStream(_Load):
    """One request at a time; the next one starts when the last was answered."""

    kind: Literal["single_stream"]

    @property
    def in_flight(self) -> int:
        return 1


class Offline(_Load):
    """As fast as possible: so many requests are always in flight."""

    kind: Literal["offline"]
    in_flight: Annotated[int, Field(ge=1, le=4096)] = 16


class Server(_Open):
    """Open loop: requests start when they are due, however late the answers are."""

    kind: Literal["server"]


class Soak(_Open):
    """Open loop for long: memory must not grow by more than this between the first and last tenth."""

    kind: Literal["soak"]
    allowed_growth_share: Annotated[float, Field(ge=0)] = 0.1


class Overload(_Open):
    """Open loop above capacity: refusals are expected, each with Retry-After."""

    kind: Literal["overload"]
    factor: Annotated[float, Field(gt=1, le=10)] = 2.0
    """How many times the capacity found by the last search is offered, when there was one; else `arrivals` counts."""


class Cancellations(_Open):
    """Open loop in which some clients leave before their answer."""

    kind: Literal["cancellations"]


class SlowReaders(_Open):
    """Open loop in which some clients read their answer slowly."""

    kind: Literal["slow_readers"]


class ColdStart(_Common):
    """From the start command to the first picture."""

    kind: Literal["cold_start"]
    command: Annotated[str, Field(min_length=1)]
    """Started in a shell; `{port}` stands for a free port."""
    starts: Annotated[int, Field(ge=1, le=20)] = 3
    limit_seconds: PositiveFloat = 600.0
    first: RequestClass = RequestClass(endpoint="sprint")


ClosedLoop = SingleStream | Offline
OpenLoop = Server | Soak | Overload | Cancellations | SlowReaders
Load = ClosedLoop | OpenLoop
Scenario = Annotated[
    SingleStream | Offline | Server | Soak | Overload | Cancellations | SlowReaders | ColdStart,
    Field(discriminator="kind"),
]
_SCENARIO: TypeAdapter[Any] = TypeAdapter(Scenario)


def parse(document: dict[str, Any], source: str) -> Load | ColdStart:
    """A scenario from its document.

    Raises:
        ScenarioError: a line for each fault, that begins with `source`.
    """
    try:
        scenario: Load | ColdStart = _SCENARIO.validate_python(document)
    except ValidationError as error:
        kinds = {"single_stream", "offline", *(str(kind) for kind in _KINDS)}
        faults = [dict(fault) for fault in error.errors()]
        # A list is also "too short" when its only item is wrong.
        deepest = [fault for fault in faults if not any(_is_within(other, fault) for other in faults)]
        lines = [f"{source}: {_line(fault, kinds)}" for fault in deepest]
        raise ScenarioError("\n".join(lines)) from error
    return scenario


_KINDS = ("server", "soak", "overload", "cancellations", "slow_readers", "cold_start")
_PROCESSES = {"poisson", "gamma", "constant", "step", "spike", "ramp", "trace"}


def _is_within(fault: dict[str, Any], outer: dict[str, Any]) -> bool:
    depth = len(outer["loc"])
    return len(fault["loc"]) > depth > 0 and fault["loc"][:depth] == outer["loc"]


def _line(fault: dict[str, Any], kinds: set[str]) -> str:
    """Field, fault and what was given, such as `arrivals.rate: Input should be greater than 0, got -1`."""
    location = [part for part in fault["loc"] if part not in kinds and part not in _PROCESSES]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"].startswith("union_tag"):
        field = ".".join(filter(None, [field, str(fault["ctx"]["discriminator"]).strip("'")]))
        expected = fault["ctx"].get("expected_tags")
        message = f"must be one of {expected}" if expected else "is missing"
        given = fault["ctx"].get("tag")
        return f"{field}: {message}" + (f", got {given!r}" if given else "")
    given = fault["input"]
    shown = f", got {given!r}" if not isinstance(given, dict | list) else ""
    return f"{field}: {message}{shown}" if field else message


def load(path: Path) -> Load | ColdStart:
    """A scenario from a TOML file; a trace's path is relative to it, and the trace is looked at.

    Raises:
        ScenarioError: it cannot be read or is wrong.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ScenarioError(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read, {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{path}: is no TOML, {error}") from error
    arrivals = document.get("arrivals")
    if isinstance(arrivals, dict) and isinstance(arrivals.get("file"), str):
        arrivals["file"] = str(path.parent / arrivals["file"])
    loaded = parse(document, str(path))
    if isinstance(loaded, OpenLoop) and isinstance(loaded.arrivals, Trace):
        read_trace(loaded.arrivals.file)
    return loaded


def read_trace(path: Path) -> list[float]:
    """Seconds, one a line; a first line that is no number, and whatever follows a comma, is left out.

    Raises:
        ScenarioError: it cannot be read or is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: the trace cannot be read, {error}") from error
    times = []
    for number, line in enumerate(lines, start=1):
        first = line.split(",")[0].strip()
        if not first:
            continue
        try:
            times.append(float(first))
        except ValueError as error:
            if number > 1:
                raise ScenarioError(f"{path}: line {number} is no number of seconds: {first!r}") from error
    if not times or not all(map(math.isfinite, times)):
        raise ScenarioError(f"{path}: holds no times, or some that are not finite")
    return times
