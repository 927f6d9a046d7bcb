"""Spans by OpenTelemetry's SDK, sent by OTLP over HTTP. Change here to tell a trace more of a request.

Loaded only where the standard variables ask for it; they also set the sampler, the resource and the exporter.
"""

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.telemetry import Span, Tracing


class Recorded(Span):
    """A span that is recorded."""

    def __init__(self, span: trace.Span, method: str) -> None:
        self._span = span
        self._method = method
        context = span.get_span_context()
        trace_id = f"{context.trace_id:032x}"
        super().__init__(trace_id, f"00-{trace_id}-{context.span_id:016x}-{context.trace_flags:02x}".encode())

    def end(self, route: str, status: int) -> None:
        """Its request is answered."""
        self._span.update_name(f"{self._method} {route}")
        self._span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Traced(Tracing):
    """A server's span for each request."""

    def __init__(self, name: str) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(__name__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Recorded:
        """The span of a request, within the trace that it comes with."""
        carried = {name: headers.get(name.encode(), b"").decode("latin-1") for name in ("traceparent", "tracestate")}
        span = self._tracer.start_span(
            method,
            context=self._propagator.extract(carried),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "url.path": path, "url.scheme": "http"},
        )
        return Recorded(span, method)

    def stop(self) -> None:
        """Send what waits."""
        self._provider.shutdown()
