"""Spans by OpenTelemetry, sent to a collector by OTLP over HTTP."""

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
"""For one batch, with what is tried again."""
STOP_SECONDS = 3.0
"""For what is left when the process ends."""
MOST_WAITING = 4096
"""Spans that wait to be sent; one more takes the place of the oldest."""
PACKAGE = (__package__ or "").split(".")[0]


class Exporting:
    """What makes spans in this process, and sends them."""

    def __init__(self, settings: Traces) -> None:
        self.settings = settings
        # It logs each batch that fails, by the logger of its own.
        logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
        logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.ERROR)
        own = {SERVICE_INSTANCE_ID: f"{socket.gethostname()}-{os.getpid()}"}
        if not os.environ.get(OTEL_SERVICE_NAME):
            own[SERVICE_NAME] = PACKAGE
        # Requests are sampled where they come in.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create(own), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(settings.endpoint, timeout=SEND_SECONDS)
        self._reporting = Reporting(exporter, settings.endpoint)
        self._processor = BatchSpanProcessor(self._reporting, max_queue_size=MOST_WAITING)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer(PACKAGE)
        self._propagator = TraceContextTextMapPropagator()
        atexit.register(self.stop)

    def samples(self) -> bool:
        return random.random() < self.settings.sampling_ratio  # noqa: S311 - it hides nothing

    def begin(
        self,
        name: str,
        kind: Kind,
        attributes: Attributes | None,
        *,
        above: Span | None,
        began: int | None = None,
    ) -> Span:
        # An empty one, so that what Ray or a library has begun is not above.
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

    def told(self, traceparent: str) -> Span | None:
        """Returns the span that a header names, or None where it names none."""
        context = self._propagator.extract({TRACEPARENT: traceparent}, Context())
        span = get_current_span(context)
        return span if span.get_span_context().is_valid else None

    def stop(self) -> None:
        atexit.unregister(self.stop)
        self._reporting.give_up_after(STOP_SECONDS)
        self._processor.shutdown()


class Reporting(SpanExporter):
    """Sends spans, and says once that they do not arrive, and once that they do again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._arrives = True
        self._deadline = math.inf

    def give_up_after(self, seconds: float) -> None:
        """Begins to send nothing after that time."""
        self._deadline = time.monotonic() + seconds

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if time.monotonic() > self._deadline:
            return SpanExportResult.FAILURE
        result = self._exporter.export(spans)
        arrives = result is SpanExportResult.SUCCESS
        if self._arrives and not arrives:
            logger.warning(
                "No traces arrive at %s. They are given up, and answers go on. Look whether the "
                "collector is up and takes OTLP over HTTP at this path.",
                self._endpoint,
            )
        elif arrives and not self._arrives:
            logger.info("Traces arrive at %s again.", self._endpoint)
        self._arrives = arrives
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
