"""What the service counts and measures, for Prometheus: `GET /metrics`, after BentoML's own.

All names, labels and help texts stand here and nowhere else: the table in docs/metrics.md is made of them
(`python -m sana_service.metrics`), and labels have few, fixed values, so that no client can make them grow. What is a
fact of the moment (queue, devices) is asked of the engine when somebody looks.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sana_service import __version__
from sana_service.models.names import ModelName

if TYPE_CHECKING:
    from sana_service.contract.schemas import BaseInput, Output
    from sana_service.engine.engine import Engine
    from sana_service.images import Encoder

Outcome = Literal["completed", "replayed", "refused", "cancelled", "expired", "failed"]
"""How a request that passed validation ended: every one does, in exactly one of these ways. A replayed one was answered
with what another request with its Idempotency-Key was given.
"""

Reason = Literal[
    "not_ready",
    "queue_full",
    "deadline_out_of_reach",
    "key_limit",
    "key_reused",
    "client_left",
    "deadline",
    "out_of_memory",
    "not_finite",
    "storage",
    "job_store",
    "internal",
]
"""Why a request that passed validation was not completed."""

StorageOperation = Literal["put", "open", "delete", "expire"]

Delivery = Literal["delivered", "failed", "given_up"]
"""What came of an attempt to call a webhook; `given_up` is the last failure."""

MODELS: tuple[ModelName, ...] = get_args(ModelName)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
STAGES = ("queue", "text", "denoise", "decode", "safety", "resize", "encode", "store")

AnyMetric = TypeVar("AnyMetric", Counter, Histogram)

_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0),
    # Close enough that a percentile of a long queue is not merely somewhere between 10 and 30.
    *(7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0),
)
_IMAGES = (1, 1.5, 2, 3, 4, 6, 8, 12, 16)

_OURS = re.compile(r"(# (HELP|TYPE) )?sana_")

REGISTRY = CollectorRegistry()
disable_created_metrics()  # type: ignore[no-untyped-call]

REQUESTS = Counter(
    "sana_requests",
    "Requests that passed validation, by how they ended. Accepted are all but the refused ones.",
    ["model", "outcome"],
    registry=REGISTRY,
)
UNCOMPLETED = Counter(
    "sana_uncompleted_requests",
    "Requests that passed validation and were neither completed nor replayed, by why.",
    ["model", "reason"],
    registry=REGISTRY,
)
RESPONSES = Counter(
    "sana_http_responses",
    "HTTP responses begun, by kind of route and status; 4xx before validation are here alone, 499 is a client that "
    "left.",
    ["route", "code"],
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "sana_request_seconds",
    "Time from a valid request to its answer, of completed requests.",
    ["model"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "sana_stage_seconds",
    "Time in each stage, of completed requests, as in Server-Timing.",
    ["model", "stage"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
BATCH_IMAGES = Histogram(
    "sana_batch_images",
    "Images that were denoised together, a mean over a request's steps.",
    ["model"],
    buckets=_IMAGES,
    registry=REGISTRY,
)
IMAGES = Counter("sana_images", "Images answered.", ["model", "format"], registry=REGISTRY)
FLAGGED_IMAGES = Counter("sana_flagged_images", "Images that the safety model blackened.", ["model"], registry=REGISTRY)
PIXELS = Counter("sana_image_pixels", "Pixels of the images answered.", ["model"], registry=REGISTRY)
STEPS = Counter(
    "sana_denoise_steps", "Denoising steps of completed requests, of each image.", ["model"], registry=REGISTRY
)
BILLABLE_UNITS = Counter("sana_billable_units", "Sum of the header x-fal-billable-units.", ["model"], registry=REGISTRY)

STORAGE_RETRIES = Counter(
    "sana_storage_retries",
    "Operations of remote storage that failed and were tried once more.",
    ["operation"],
    registry=REGISTRY,
)
STORAGE_ERRORS = Counter(
    "sana_storage_errors",
    "Operations that failed for good, a missing file not counted.",
    ["operation"],
    registry=REGISTRY,
)
WEBHOOKS = Counter("sana_webhook_attempts", "Calls of webhooks, by what came of them.", ["outcome"], registry=REGISTRY)
START_SECONDS = Gauge(
    "sana_start_seconds", "Time from the start of loading until ready; 0 before that.", registry=REGISTRY
)
ProcessCollector(namespace="sana", registry=REGISTRY)

for _model in MODELS:
    for _outcome in OUTCOMES:
        REQUESTS.labels(_model, _outcome)
    for _reason in get_args(Reason):
        UNCOMPLETED.labels(_model, _reason)
    for _stage in STAGES:
        STAGE_SECONDS.labels(_model, _stage)
    for _format in ("jpeg", "png"):
        IMAGES.labels(_model, _format)
    for _metric in (REQUEST_SECONDS, BATCH_IMAGES, FLAGGED_IMAGES, PIXELS, STEPS, BILLABLE_UNITS):
        _metric.labels(_model)
for _operation in get_args(StorageOperation):
    STORAGE_ERRORS.labels(_operation)
    if _operation != "expire":  # remote files expire by the bucket's own rule
        STORAGE_RETRIES.labels(_operation)
for _delivery in get_args(Delivery):
    WEBHOOKS.labels(_delivery)
for _route in ("generate", "sprint"):
    for _code in (200, 400, 401, 413, 415, 422, 429, 500, 503, 504):
        RESPONSES.labels(_route, str(_code))


@cache
def series(metric: AnyMetric, *labels: str) -> AnyMetric:
    """One series of a metric. Its `labels` looks at each label anew, and that several times a request."""
    return metric.labels(*labels)


def count_request(model: ModelName, outcome: Outcome, reason: Reason | None = None) -> None:
    """A request that passed validation has ended.

    Args:
        reason: why it was not completed; None where it was.
    """
    series(REQUESTS, model, outcome).inc()
    if reason is not None:
        series(UNCOMPLETED, model, reason).inc()


def count_answer(model: ModelName, request: BaseInput, output: Output, units: int, seconds: float) -> None:
    """What a completed request took and gave."""
    count_request(model, "completed")
    series(REQUEST_SECONDS, model).observe(seconds)
    for stage, spent in output.timings.items():
        series(STAGE_SECONDS, model, stage).observe(spent)
    series(BATCH_IMAGES, model).observe(output.batch_images)
    series(IMAGES, model, request.output_format).inc(len(output.images))
    series(FLAGGED_IMAGES, model).inc(sum(output.has_nsfw_concepts))
    series(PIXELS, model).inc(sum(image.width * image.height for image in output.images))
    series(STEPS, model).inc(request.num_inference_steps * request.num_images)
    series(BILLABLE_UNITS, model).inc(units)


class LiveState(Collector):
    """What is read when somebody looks; one for the process.

    Args:
        ready: whether the service takes requests.
        engine: the engine, or None while the models load.
        encoder: what its artifacts go through.
        max_queue: jobs that may wait.
        max_work: megapixel-steps that may wait.
    """

    def __init__(
        self,
        ready: Callable[[], bool],
        engine: Callable[[], Engine | None],
        encoder: Encoder,
        max_queue: int,
        max_work: float = 0.0,
    ) -> None:
        self._ready = ready
        self._engine = engine
        self._encoder = encoder
        self._max_queue = max_queue
        self._max_work = max_work

    def collect(self) -> Iterator[Metric]:
        engine = self._engine()
        yield _gauge("sana_ready", "1 where the service takes requests, as /readyz says.", float(self._ready()))
        yield _gauge("sana_queue_jobs", "Requests that wait for a device.", float(engine.queued if engine else 0))
        yield _gauge("sana_queue_capacity_jobs", "Requests that may wait, SANA_MAX_QUEUE.", float(self._max_queue))
        work = engine.queued_work if engine else 0.0
        yield _gauge("sana_queue_work_megapixel_steps", "Work that waits: megapixels as drawn, times steps.", work)
        yield _gauge("sana_queue_capacity_megapixel_steps", "Work that may wait, SANA_MAX_QUEUE_WORK.", self._max_work)
        oldest = engine.oldest_queued_seconds if engine else 0.0
        yield _gauge("sana_queue_oldest_seconds", "How long the request that came first has waited.", oldest)
        yield _gauge("sana_running_jobs", "Requests on a device.", float(engine.running if engine else 0))
        wait = GaugeMetricFamily(
            "sana_predicted_wait_seconds",
            "Predicted time until a request that comes now would be the first of its endpoint.",
            labels=["model"],
        )
        for model in MODELS:
            wait.add_metric([model], engine.predicted_wait(model) if engine else 0.0)
        yield wait
        yield _gauge("sana_encoder_waiting_images", "Images that wait to be encoded.", float(self._encoder.waiting))
        yield _gauge("sana_devices", "Devices that the engine was given.", float(engine.devices if engine else 0))
        lost = engine.devices_lost if engine else 0
        yield _gauge("sana_devices_lost", "Devices that failed for good.", float(lost))
        yield from _memory(engine)
        yield _shortages(engine)
        info = GaugeMetricFamily("sana_build_info", "1, with what runs.", labels=["version", "python"])
        info.add_metric([__version__, platform.python_version()], 1.0)
        yield info


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_text, value=value)


def _shortages(engine: Engine | None) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "sana_out_of_memory",
        "Times that a stage ran out of device memory, whether or not the request survived it.",
        labels=["stage"],
    )
    for stage, times in (engine.shortages() if engine else {}).items():
        family.add_metric([stage], float(times))
    return family


def _memory(engine: Engine | None) -> Iterator[Metric]:
    """Of CUDA devices; there are none on a CPU."""
    kinds = {
        "allocated": "Device memory that tensors hold.",
        "reserved": "Device memory that the process holds.",
        "peak": "The most that tensors held since the start.",
    }
    families = {
        kind: GaugeMetricFamily(f"sana_device_memory_{kind}_bytes", text, labels=["device"])
        for kind, text in kinds.items()
    }
    for device, figures in (engine.memory_bytes() if engine else {}).items():
        for kind, value in figures.items():
            families[kind].add_metric([device], float(value))
    yield from families.values()


def render(text: str) -> str:
    """BentoML's metrics and this module's, in Prometheus' text format.

    Args:
        text: what BentoML has. It collects from files that every counter of the process writes, so this module's are
            among them, without their help; they are left out there.
    """
    others = (line for line in text.splitlines(keepends=True) if not _OURS.match(line))
    return "".join(others) + generate_latest(REGISTRY).decode()


@dataclass(frozen=True)
class Described:
    """One metric as `/metrics` names it.

    Args:
        name: with a counter's `_total`.
        kind: counter, gauge or histogram.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def catalogue() -> list[Described]:
    """All metrics, the live ones as they are before the models are loaded."""
    from sana_service.images import Encoder

    encoder = Encoder(workers=1)
    live = LiveState(lambda: False, lambda: None, encoder, 0)
    try:
        families = [*REGISTRY.collect(), *live.collect()]
    finally:
        encoder.close()
    return sorted({_describe(family) for family in families}, key=lambda one: one.name)


def _describe(family: Metric) -> Described:
    labels = sorted({name for sample in family.samples for name in sample.labels} - {"le"})
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return Described(name, family.type, tuple(labels) or _LABELS.get(name, ()), family.documentation)


def table() -> str:
    """All metrics as a Markdown table."""
    lines = ["| metric | type | labels | what |", "| --- | --- | --- | --- |"]
    for one in catalogue():
        shown = ", ".join(f"`{label}`" for label in one.labels)
        lines.append(f"| `{one.name}` | {one.kind} | {shown} | {one.help} |")
    return "\n".join(lines) + "\n"


_LABELS = {
    **{f"sana_device_memory_{kind}_bytes": ("device",) for kind in ("allocated", "reserved", "peak")},
    "sana_out_of_memory_total": ("stage",),
}
"""Of metrics that have no sample where the table is made."""


if __name__ == "__main__":
    print(table(), end="")
