"""Makes OpenTelemetry spans, and sends them to a collector by OTLP over HTTP."""

import atexit
import logging
import math
import os
import random
import socket
import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .logs import logger
from .traces import TRACEPARENT, Attributes, Kind, Traces

KINDS: dict[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
}
SEND_SECONDS = 3.0
"""How long sending one batch may take, with retries."""
STOP_SECONDS = 3.0
"""How long sending the rest may take when the process ends."""
MAX_WAITING = 4096
"""How many spans may wait to be sent. A further one replaces the oldest."""
PACKAGE = (__package__ or "").split(".")[0]


class TraceExporter:
    """Makes and sends the spans of this process."""

    def __init__(self, settings: Traces) -> None:
        self.settings = settings
        # The library logs each batch that fails. `ReportingExporter` logs only the first one.
        logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
        logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.ERROR)
        own = {SERVICE_INSTANCE_ID: f"{socket.gethostname()}-{os.getpid()}"}
        if not os.environ.get(OTEL_SERVICE_NAME):
            own[SERVICE_NAME] = PACKAGE
        # Requests are sampled when they arrive.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create(own), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(settings.endpoint, timeout=SEND_SECONDS)
        self._reporting = ReportingExporter(exporter, settings.endpoint)
        self._processor = BatchSpanProcessor(self._reporting, max_queue_size=MAX_WAITING)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer(PACKAGE)
        self._propagator = TraceContextTextMapPropagator()
        atexit.register(self.stop)

    def samples(self) -> bool:
        return random.random() < self.settings.sampling_ratio  # noqa: S311 - not for security

    def begin(
        self,
        name: str,
        kind: Kind,
        attributes: Attributes | None,
        *,
        above: Span | None,
        began: int | None = None,
    ) -> Span:
        # An empty context, so that a span of Ray or another library does not become the parent.
        context = Context()
        if above is not None:
            context = set_span_in_context(above, context)
        return self._tracer.start_span(
            name,
            context,
            KINDS[kind],
            attributes,
            start_time=began,
            record_exception=False,
            set_status_on_exception=False,
        )

    def fail(self, span: Span, description: str | None) -> None:
        span.set_status(StatusCode.ERROR, description)

    def traceparent(self, span: Span) -> str:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span, Context()))
        return carrier[TRACEPARENT]

    def parent_span(self, traceparent: str) -> Span | None:
        """Returns the span in a header, or None if the header is not valid."""
        context = self._propagator.extract({TRACEPARENT: traceparent}, Context())
        span = get_current_span(context)
        return span if span.get_span_context().is_valid else None

    def stop(self) -> None:
        atexit.unregister(self.stop)
        self._reporting.stop_after(STOP_SECONDS)
        self._processor.shutdown()


class ReportingExporter(SpanExporter):
    """Sends spans. Logs once when sending fails, and once when it works again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._arrives = True
        self._deadline = math.inf

    def stop_after(self, seconds: float) -> None:
        """Stops sending after that time."""
        self._deadline = time.monotonic() + seconds

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if time.monotonic() > self._deadline:
            return SpanExportResult.FAILURE
        result = self._exporter.export(spans)
        arrives = result is SpanExportResult.SUCCESS
        if self._arrives and not arrives:
            logger.warning(
                "Traces cannot be sent to %s and are dropped. Answers are not affected. Check that the "
                "collector is running and accepts OTLP over HTTP at this path.",
                self._endpoint,
            )
        elif arrives and not self._arrives:
            logger.info("Traces are being sent to %s again.", self._endpoint)
        self._arrives = arrives
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
