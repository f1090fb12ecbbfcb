"""Traces. The variables `OTEL_*` are OpenTelemetry's; its SDK reads more of them, from the environment only."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field

from api.settings.answers import SettingsGroup


class TracingSettings(SettingsGroup):
    """Whether and where traces go. Off unless there is a collector."""

    otel_exporter_otlp_endpoint: Annotated[str, Field(title="URL", pattern=r"^https?://\S+$")] | None = None
    """Collector that gets the traces. Default: no traces.

    OTLP over HTTP, port 4318 of most collectors; `/v1/traces` is appended. It needs the extra `otel`.
    """
    otel_exporter_otlp_traces_endpoint: Annotated[str, Field(title="URL", pattern=r"^https?://\S+$")] | None = None
    """The same, with the whole path."""
    otel_exporter_otlp_headers: Annotated[str, Field(title="list")] | None = None
    """Headers for the collector, such as its key: `name=value,...`."""
    otel_traces_exporter: Literal["otlp", "console", "none"] = "otlp"
    """Where traces go. `console`: standard output."""
    otel_sdk_disabled: bool = False
    """Switch traces off."""
    otel_service_name: Annotated[str, Field(title="name")] | None = None
    """Name of the service in traces. Default: `ragherd`."""
    otel_resource_attributes: Annotated[str, Field(title="list")] | None = None
    """Attributes of every trace, such as `deployment.environment.name=staging`."""
    otel_traces_sampler: Annotated[str, Field(title="name")] | None = None
    """Which requests are traced. Default: as the caller says, else all.

    `always_on`, `always_off`, `traceidratio`, and each with `parentbased_` before it. The default is
    `parentbased_always_on`.
    """
    otel_traces_sampler_arg: Annotated[str, Field(title="share")] | None = None
    """Share of the traces that `traceidratio` keeps."""
    otel_semconv_stability_opt_in: Annotated[str, Field(title="list")] | None = None
    """Newer names of attributes: `gen_ai_latest_experimental`.

    By default, model calls have the attributes of version 1.36 of the conventions.
    """
    otel_instrumentation_genai_capture_message_content: Annotated[str, Field(title="name")] | None = None
    """Put prompts and answers in spans: `SPAN_ONLY`.

    It also needs `LOG_QUESTIONS=true` and `gen_ai_latest_experimental`.
    """
    trace_hit_sample_rate: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the traces of cache hits to keep.

    Traces of misses, expired answers and errors are kept as the sampler says.
    """

    @property
    def is_on(self) -> bool:
        """Returns whether the settings ask for traces."""
        if self.otel_sdk_disabled or self.otel_traces_exporter == "none":
            return False
        endpoint = self.otel_exporter_otlp_endpoint or self.otel_exporter_otlp_traces_endpoint
        return endpoint is not None or self.otel_traces_exporter == "console"

    @property
    def latest_conventions(self) -> bool:
        """Returns whether spans have the newest names of the GenAI conventions."""
        return "gen_ai_latest_experimental" in _words(self.otel_semconv_stability_opt_in)

    @property
    def captures_content(self) -> bool:
        """Returns whether OpenTelemetry's settings allow texts in spans."""
        wanted = _words(self.otel_instrumentation_genai_capture_message_content)
        return self.latest_conventions and bool(wanted & {"true", "span_only", "span_and_event"})

    def export(self) -> None:
        """Copies values of `.env` to the environment, where OpenTelemetry's SDK reads them."""
        for name in self.model_fields_set:
            if name.startswith("otel_") and (value := getattr(self, name)) is not None:
                os.environ.setdefault(name.upper(), str(value).lower() if isinstance(value, bool) else str(value))


def _words(value: str | None) -> set[str]:
    return {word.strip().lower() for word in (value or "").split(",")}
