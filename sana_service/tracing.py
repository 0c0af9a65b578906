"""OpenTelemetry traces: a span for each request that draws, and one for each of its stages.

Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) names a collector; the exporter, the sampler and the
resource are set by OpenTelemetry's own variables. Names are those of the GenAI conventions where they have one,
otherwise `sana.*`. A prompt is in no span unless the operator says so.

A request's spans are children of the caller's, by `traceparent`. They do not use OpenTelemetry's current span, since
what stands there is BentoML's, which nobody exports.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from sana_service import __version__
from sana_service.outcomes import reason_of
from sana_service.telemetry import request_id, trace_id

if TYPE_CHECKING:
    from sana_service.contract.schemas import BaseInput, Output
    from sana_service.engine.observer import Observer, Preview, Progress
    from sana_service.models.names import ModelName

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"

_NAME = "sana_service"

_request: ContextVar[Context | None] = ContextVar("trace_request", default=None)
"""Where the spans of what is being served belong."""
_generated: ContextVar[Generated | None] = ContextVar("trace_generated", default=None)


def is_on(environ: Mapping[str, str]) -> bool:
    """Whether a collector is named, and OpenTelemetry is not switched off.

    Raises:
        ValueError: the collector cannot be spoken to; one line that names the variable.
    """
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    name = next((name for name in ENDPOINT_VARIABLES if environ.get(name, "").strip()), None)
    if name is None:
        return False
    if not environ[name].startswith(("http://", "https://")):
        raise ValueError(f"{name}={environ[name]!r}: must be a URL such as http://collector:4318")
    for protocol in PROTOCOL_VARIABLES:
        if environ.get(protocol, PROTOCOL) not in {"", PROTOCOL}:
            raise ValueError(f"{protocol}={environ[protocol]!r}: must be {PROTOCOL}, or unset")
    return True


@dataclass(frozen=True)
class Tracing:
    """What makes spans; one for the process.

    Args:
        tracer: makes spans, or does nothing.
        prompts: whether prompts are put into them.
        close: sends what is left. May block for some seconds.
        on: whether anybody looks.
    """

    tracer: Tracer = field(default_factory=trace.NoOpTracer)
    prompts: bool = False
    close: Callable[[], None] = lambda: None
    on: bool = False

    @contextmanager
    def served(self, method: str, kind: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """The span of an HTTP request, a child of the caller's.

        Args:
            kind: the kind of route, as the metrics have it.
        """
        attributes = {"http.request.method": method, "sana.route": kind, "sana.request_id": request_id.get()}
        with self._span(f"{method} {kind}", extract(headers), SpanKind.SERVER, attributes) as span:
            yield span

    @contextmanager
    def generation(self, model: ModelName, model_name: str, request: BaseInput) -> Iterator[Generated]:
        """The span of one generation."""
        span_name = f"generate_content {model_name}"
        attributes = self._asked(model, model_name, request) if self.on else {}
        with self._span(span_name, _request.get() or Context(), SpanKind.INTERNAL, attributes) as span:
            generated = Generated(self, span)
            place = _generated.set(generated if self.on else None)
            try:
                yield generated
            except BaseException as error:
                generated.failed(error)
                raise
            finally:
                _generated.reset(place)

    @contextmanager
    def _span(self, name: str, parent: Context, kind: SpanKind, attributes: Mapping[str, Any]) -> Iterator[Span]:
        if not self.on:
            yield trace.INVALID_SPAN
            return
        span = self.tracer.start_span(name, parent, kind, attributes)
        places = _request.set(trace.set_span_in_context(span, parent)), trace_id.set(_hex_id(span))
        try:
            yield span
        finally:
            _request.reset(places[0])
            trace_id.reset(places[1])
            span.end()

    def _asked(self, model: ModelName, model_name: str, request: BaseInput) -> dict[str, Any]:
        from sana_service.contract.sizes import resolve_size

        size = resolve_size(request.image_size)
        asked: dict[str, Any] = {
            "gen_ai.operation.name": "generate_content",
            "gen_ai.output.type": "image",
            "gen_ai.provider.name": "sana",
            "gen_ai.request.model": model_name,
            "gen_ai.request.choice.count": request.num_images,
            "gen_ai.response.id": request_id.get(),
            "sana.model": model,
            "sana.width": size.width,
            "sana.height": size.height,
            "sana.steps": request.num_inference_steps,
            "sana.guidance_scale": request.guidance_scale,
            "sana.output_format": request.output_format,
            "sana.style": request.style_name,
        }
        if request.seed is not None:
            asked["gen_ai.request.seed"] = _signed(request.seed)
        if self.prompts:
            parts = [{"type": "text", "content": request.prompt}]
            asked["gen_ai.input.messages"] = json.dumps([{"role": "user", "parts": parts}])
            asked["sana.negative_prompt"] = request.negative_prompt
        return asked


class Generated:
    """A generation on its way: notes when its stages begin, and makes spans of them at its end."""

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span
        self._began_ns = {"queue": time.time_ns()}

    def begins(self, stage: str) -> None:
        """A stage has its turn; the first time counts. May be called from any thread."""
        self._began_ns.setdefault(stage, time.time_ns())

    def completed(self, output: Output) -> None:
        """The generation has its answer."""
        if not self._tracing.on:
            return
        flagged = output.has_nsfw_concepts
        self._span.set_attributes(
            {
                "gen_ai.request.seed": _signed(output.seed),
                "gen_ai.response.finish_reasons": ["content_filter" if one else "stop" for one in flagged],
                "sana.batch_images": output.batch_images,
                "sana.flagged_images": sum(flagged),
            }
        )
        for stage, seconds in output.timings.items():
            began = self._began_ns.get(stage)
            if began is not None:
                self._stage(stage, began, began + round(seconds * 1e9))

    def failed(self, error: BaseException) -> None:
        """The generation ended without one: the stages that began end where the next one did, the last one now."""
        if not self._tracing.on:
            return
        reason = reason_of(error)
        self._span.set_attribute("error.type", reason)
        self._span.set_status(Status(StatusCode.ERROR, reason))
        stages = sorted(self._began_ns.items(), key=lambda stage: stage[1])
        ends = [began for _, began in stages[1:]]
        for (stage, began), end in zip(stages, [*ends, time.time_ns()], strict=True):
            self._stage(stage, began, end, failed=len(ends) == stages.index((stage, began)))

    def _stage(self, name: str, began_ns: int, end_ns: int, *, failed: bool = False) -> None:
        parent = trace.set_span_in_context(self._span)
        span = self._tracing.tracer.start_span(name, parent, start_time=began_ns, attributes={"sana.stage": name})
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_ns)


class _Watch:
    """Notes when stages begin, and passes everything on."""

    def __init__(self, begins: Callable[[str], None], inner: Observer | None) -> None:
        self._begins = begins
        self._inner = inner

    @property
    def previews(self) -> int:
        return self._inner.previews if self._inner is not None else 0

    def progress(self, progress: Progress) -> None:
        self._begins(progress.stage)
        if self._inner is not None:
            self._inner.progress(progress)

    def preview(self, preview: Preview) -> None:
        if self._inner is not None:
            self._inner.preview(preview)


def watched(observer: Observer | None) -> Observer | None:
    """The observer that the engine is to tell of the current generation."""
    generated = _generated.get()
    return observer if generated is None else _Watch(generated.begins, observer)


def begins(stage: str) -> None:
    """A stage of the current generation begins, outside the engine."""
    generated = _generated.get()
    if generated is not None:
        generated.begins(stage)


def open_tracing(environ: Mapping[str, str], *, prompts: bool) -> Tracing:
    """Tracing as the environment wants it; one that does nothing where it names no collector."""
    if not is_on(environ):
        return Tracing()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = Resource({"service.name": "sana", "service.version": __version__})
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins.
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider.get_tracer(_NAME, __version__), prompts, provider.shutdown, on=True)


def _hex_id(span: Span) -> str:
    return format(span.get_span_context().trace_id, "032x")


def _signed(seed: int) -> int:
    """A seed of 64 bits as the signed integer that OTLP has."""
    return seed - 2**64 if seed >= 2**63 else seed
