"""``sage_settings.tracing``: apart from :mod:`sage_gateway.tracing`, which loads OpenTelemetry."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from sage_gateway.config_section import Section
from sage_prefect.common.errors import MissingDependencyError, SettingsError


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """Whether spans are made, how many, and where they go."""

    enabled: bool = False
    endpoint: str | None = None
    """An OTLP/HTTP collector, such as ``http://127.0.0.1:4318/v1/traces``; None: as the variables
    ``OTEL_EXPORTER_OTLP_*`` say."""
    sample_ratio: float = 1.0
    """Of the requests that come without a trace context; one with a context is sampled as its
    caller decided."""
    service_name: str = "sage-gateway"


def tracing_config(sage: Section) -> TracingConfig:
    """Read ``sage_settings.tracing``.

    Raises:
        SettingsError: names the key, its value and what was expected.
        MissingDependencyError: it is enabled and OpenTelemetry is not installed.
    """
    section = sage.section("tracing")
    default = TracingConfig()
    config = TracingConfig(
        section.flag("enabled"),
        section.text("endpoint"),
        section.number("sample_ratio", default.sample_ratio, most=1.0),
        section.text("service_name", default.service_name) or default.service_name,
    )
    section.refuse_unread()
    if config.endpoint is not None and not config.endpoint.startswith(("http://", "https://")):
        raise SettingsError(
            f"{section.name('endpoint')} has the value {config.endpoint!r}; expected a URL.",
            hint="Collectors listen at http://HOST:4318/v1/traces.",
        )
    if config.enabled and not _installed():
        raise MissingDependencyError(
            "opentelemetry-sdk", "tracing", "sage_settings.tracing.enabled"
        )
    return config


def _installed() -> bool:
    try:
        return (
            importlib.util.find_spec("opentelemetry.sdk.trace") is not None
            and importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
        )
    except ModuleNotFoundError:  # find_spec imports the parents
        return False
