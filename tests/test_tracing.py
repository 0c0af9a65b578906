"""Spans of a request: whose they are, what stands in them, and that the prompt does not unless it is asked for."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from sana_service import tracing
from sana_service.contract.errors import Unavailable
from sana_service.contract.schemas import ImageFile, SanaSprintOutput, SprintInput
from sana_service.engine.observer import Progress
from sana_service.http.tracing import Traced
from sana_service.storage import StorageError
from sana_service.telemetry import configure_logging, get_logger

PROMPT = "a secret garden"
CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{CALLER}-00f067aa0ba902b7-01"
TIMINGS = {"queue": 0.0, "text": 0.001, "denoise": 0.02, "decode": 0.003, "encode": 0.004, "store": 0.0005}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def traced(exporter: InMemorySpanExporter, *, prompts: bool = False) -> tracing.Tracing:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return tracing.Tracing(provider.get_tracer("test"), prompts, on=True)


def output() -> SanaSprintOutput:
    image = ImageFile(url="u", content_type="image/png", file_name="f", file_size=1, width=512, height=512)
    return SanaSprintOutput(
        images=[image, image], seed=2**64 - 1, has_nsfw_concepts=[False, True], prompt=PROMPT, timings=TIMINGS
    ).denoised_with(3.5)


def service(tracing_: tracing.Tracing, fails: Exception | None = None) -> TestClient:
    """An application that goes a generation's way without a model."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = {"prompt": PROMPT, "num_images": 2, "image_size": "square", "output_format": "png", "seed": 2**64 - 1}
        request = SprintInput.model_validate(body)
        try:
            with tracing_.generation("sprint", "maker/sprint", request) as generated:
                observer = tracing.watched(None)
                assert observer is not None
                for stage in ("text", "denoise", "decode"):
                    # The engine's thread tells the observer.
                    await asyncio.to_thread(observer.progress, Progress(stage, 0, 4))
                for stage in ("encode", "store"):
                    tracing.begins(stage)
                if fails is not None:
                    raise fails
                generated.completed(output())
        except Unavailable:
            await JSONResponse({}, status_code=503)(scope, receive, send)
        else:
            await JSONResponse({})(scope, receive, send)

    return TestClient(Traced(app, lambda: tracing_))


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    finished = exporter.get_finished_spans()
    by_name = {span.name: span for span in finished}
    assert len(by_name) == len(finished)
    return by_name


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_request_is_the_callers_child_and_its_stages_are_the_generations(exporter: InMemorySpanExporter) -> None:
    service(traced(exporter)).post("/sprint", headers={"traceparent": TRACEPARENT})
    found = spans(exporter)
    assert set(found) == {"POST sprint", "generate_content maker/sprint", *TIMINGS}
    assert {format(span.context.trace_id, "032x") for span in found.values() if span.context} == {CALLER}
    served, generation = found["POST sprint"], found["generate_content maker/sprint"]
    assert served.parent is not None
    assert format(served.parent.span_id, "016x") == TRACEPARENT.split("-")[2]
    assert generation.parent == served.context
    for stage, seconds in TIMINGS.items():
        span = found[stage]
        assert span.parent == generation.context
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.end_time - span.start_time == round(seconds * 1e9)
    starts = [found[stage].start_time or 0 for stage in TIMINGS]
    assert starts == sorted(starts)


def test_a_span_says_what_was_asked_and_what_came_of_it(exporter: InMemorySpanExporter) -> None:
    service(traced(exporter)).post("/sprint")
    found = spans(exporter)
    said = attributes(found["generate_content maker/sprint"])
    expected = {
        "gen_ai.operation.name": "generate_content", "gen_ai.output.type": "image",
        "gen_ai.request.model": "maker/sprint", "gen_ai.request.choice.count": 2,
        # OTLP's integers have a sign: the same 64 bits.
        "gen_ai.request.seed": -1,
        "gen_ai.response.finish_reasons": ("stop", "content_filter"),
        "sana.model": "sprint", "sana.width": 512, "sana.height": 512, "sana.steps": 2, "sana.output_format": "png",
        "sana.batch_images": 3.5, "sana.flagged_images": 1,
    }  # fmt: skip
    assert {name: said[name] for name in expected} == expected
    assert attributes(found["POST sprint"])["http.response.status_code"] == 200
    assert attributes(found["POST sprint"])["sana.route"] == "sprint"


@pytest.mark.parametrize("prompts", [False, True])
def test_the_prompt_is_there_only_on_request(exporter: InMemorySpanExporter, prompts: bool) -> None:
    service(traced(exporter, prompts=prompts)).post("/sprint")
    everything = json.dumps([json.loads(span.to_json()) for span in exporter.get_finished_spans()])
    assert (PROMPT in everything) is prompts
    if prompts:
        [message] = json.loads(attributes(spans(exporter)["generate_content maker/sprint"])["gen_ai.input.messages"])
        assert message == {"role": "user", "parts": [{"type": "text", "content": PROMPT}]}


def test_a_failure_has_its_reason_and_the_stage_it_happened_in(exporter: InMemorySpanExporter) -> None:
    error = Unavailable("The image storage does not answer, retry later.")
    error.__cause__ = StorageError("s3://images failed twice: a detail of the backend")
    assert service(traced(exporter), fails=error).post("/sprint").status_code == 503
    found = spans(exporter)
    generation = found["generate_content maker/sprint"]
    assert attributes(generation)["error.type"] == "storage"
    failed = {name for name, span in found.items() if span.status.status_code is StatusCode.ERROR}
    assert failed == {"POST sprint", "generate_content maker/sprint", "store"}
    assert found["text"].end_time == found["denoise"].start_time
    everything = json.dumps([json.loads(span.to_json()) for span in exporter.get_finished_spans()])
    assert "a detail of the backend" not in everything


def test_without_a_collector_nothing_is_made() -> None:
    off = tracing.open_tracing({}, prompts=False)
    request = SprintInput.model_validate({"prompt": PROMPT})
    with off.generation("sprint", "maker/sprint", request) as generated:
        assert tracing.watched(None) is None, "the engine has nobody to tell"
        generated.completed(output())
    assert not off.on


def test_a_log_line_names_the_trace(exporter: InMemorySpanExporter, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("sana")
    before = (logger.handlers, logger.level, logger.propagate)
    configure_logging("json")
    try:
        with traced(exporter).served("POST", "sprint", {"traceparent": TRACEPARENT}):
            get_logger("x").info("inside")
        get_logger("x").info("outside")
    finally:
        logging.captureWarnings(False)
        logger.handlers, logger.level, logger.propagate = before
    inside, outside = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert inside["trace_id"] == CALLER
    assert "trace_id" not in outside


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_a_collector_is_what_switches_it_on(environ: dict[str, str], on: bool) -> None:
    assert tracing.is_on(environ) is on


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
            "OTEL_EXPORTER_OTLP_ENDPOINT='collector:4318': must be a URL such as http://collector:4318",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL='grpc': must be http/protobuf, or unset",
        ),
    ],
)
def test_what_cannot_be_spoken_to_is_told_at_start(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=r"OTEL_") as caught:
        tracing.is_on(environ)
    assert str(caught.value) == said
