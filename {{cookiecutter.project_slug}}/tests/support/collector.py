"""An OpenTelemetry collector on loopback that stores spans received over OTLP."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)


@dataclass(frozen=True)
class Received:
    """A received span."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    failed: bool
    attributes: dict[str, Any]
    process: str


@dataclass
class Collector:
    url: str
    spans: list[Received] = field(default_factory=list)
    bodies: bytes = b""

    def take(self, body: bytes) -> None:
        self.bodies += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_received(span, about) for span in scope.spans]

    def tree(self, trace: str | None = None) -> dict[str, Any]:
        """Returns the span names of a trace as a tree of parents and children."""
        spans = [span for span in self.spans if trace in (None, span.trace)]
        known = {span.id for span in spans}

        def below(parent: str | None) -> dict[str, Any]:
            at_top = [span for span in spans if span.parent not in known]
            found = [span for span in spans if span.parent == parent] if parent else at_top
            found.sort(key=lambda span: (span.began, span.ended))
            return {span.name: below(span.id) for span in found}

        return below(None)

    def one(self, name: str) -> Received:
        [span] = [span for span in self.spans if span.name == name]
        return span


def _received(span: Any, about: dict[str, Any]) -> Received:
    return Received(
        span.name,
        span.kind,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == span.status.STATUS_CODE_ERROR,
        _attributes(span.attributes),
        about["service.instance.id"],
    )


def _attributes(given: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in given}


def _value(given: Any) -> Any:
    kind = given.WhichOneof("value")
    value = getattr(given, kind)
    return [_value(each) for each in value.values] if kind == "array_value" else value


@contextmanager
def collecting() -> Iterator[Collector]:
    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Taking)
    collector = Collector(f"http://127.0.0.1:{server.server_address[1]}/v1/traces")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
