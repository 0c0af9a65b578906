"""A real server sends its spans to a collector, also those of the requests it finishes while it drains."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests import services

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ENGINE_STAGES = {"queue", "text", "denoise", "decode", "safety", "resize"}


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP on the loopback interface."""

    def __init__(self) -> None:
        self.exports: list[ExportTraceServiceRequest] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    def spans(self) -> list:
        return [
            span
            for export in self.exports
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.exports.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing of it on stderr."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_a_servers_spans_arrive(tmp_path, pair_variables: dict[str, str], collector: Collector) -> None:
    variables = {
        **pair_variables,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        # Nothing is sent before the end: what arrives is what the stop sent.
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
        "OTEL_SERVICE_NAME": "drawing",
        "SANA_LOG_FORMAT": "json",
        # Otherwise a test's server shows what libraries warn their developers of, before any setting is read.
        "PYTHONWARNINGS": "ignore",
    }
    with services.server(tmp_path, variables) as server:
        headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "a-request"}
        body = {"prompt": "a secret garden", "image_size": "square", "num_inference_steps": 2, "seed": 7}
        answer = httpx.post(f"{server.url}/generate", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200
        assert httpx.post(f"{server.url}/sprint", json={"prompt": 1}, timeout=60).status_code == 422
        assert server.stop() == 0
        _check_log(server.log)
    spans = {span.name: span for span in collector.spans() if span.trace_id.hex() == TRACE}
    generation = next(span for name, span in spans.items() if name.startswith("generate_content "))
    assert set(spans) == {"POST generate", generation.name, *ENGINE_STAGES, "encode", "store"}
    for stage in (*ENGINE_STAGES, "encode", "store"):
        assert spans[stage].parent_span_id == generation.span_id
        seconds = (spans[stage].end_time_unix_nano - spans[stage].start_time_unix_nano) / 1e9
        assert seconds == pytest.approx(answer.json()["timings"][stage], abs=1e-6)
        assert spans[stage].start_time_unix_nano >= generation.start_time_unix_nano
    said = {one.key: one.value for one in generation.attributes}
    assert said["gen_ai.request.seed"].int_value == 7
    assert said["gen_ai.response.id"].string_value == "a-request"
    invalid = next(span for span in collector.spans() if span.name == "POST sprint")
    assert {one.key: one.value.int_value for one in invalid.attributes}["http.response.status_code"] == 422
    resource = {one.key: one.value.string_value for one in collector.exports[0].resource_spans[0].resource.attributes}
    assert resource["service.name"] == "drawing"
    assert b"a secret garden" not in b"".join(export.SerializeToString() for export in collector.exports)


def _check_log(log: str) -> None:
    """Each line is a JSON document, those of the request name it and its trace, and none has the prompt."""
    records = [json.loads(line) for line in log.splitlines()]
    ours = [record for record in records if record.get("request_id") == "a-request"]
    assert ours
    assert {record["trace_id"] for record in ours if record["logger"] == "sana.runtime"} == {TRACE}
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, records))
    assert "a secret garden" not in log
