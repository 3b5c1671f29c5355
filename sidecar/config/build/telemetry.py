"""The `access_log` and `tracing` sections: what is written of each request, and where to."""

import re
from types import MappingProxyType
from typing import Annotated, Literal
from urllib.parse import urlsplit
from msgspec import Meta, field
from sidecar.config.document import Entry
from sidecar.config.fields import HeaderValue, Timeout, Token
from sidecar.config.settings import AccessLogSettings, Tracing
from sidecar.config.errors import Report
from sidecar.core.units import parse_duration
from sidecar.config.document import AccessLogEntry, LogFormat, TracingEntry
from typing import Final
from sidecar.config.document import UnusualEntry, UsageEntry
from sidecar.config.errors import Report
from sidecar.config.settings import UsageSettings
from sidecar.core.units import parse_duration
from sidecar.usage.anomalies import Unusual



# The `usage` section: how long use is kept by the hour and by the day, and what of it is unusual.


_DAY_SECONDS: Final = 86_400


def usage_of(entry: UsageEntry, report: Report) -> UsageSettings:
    hours_seconds, keep_seconds = parse_duration(entry.hours), parse_duration(entry.keep)
    if hours_seconds < _DAY_SECONDS:
        report.problem(("usage", "hours"), "must be at least 1d: what is older is summed up by the day")
    if keep_seconds < hours_seconds:
        report.problem(("usage", "keep"), f"must not be shorter than usage.hours, which is {entry.hours}")
    return UsageSettings(hours_seconds=hours_seconds, keep_seconds=keep_seconds, unusual=_unusual(entry.unusual))


def _unusual(entry: UnusualEntry) -> Unusual:
    refusals = None if isinstance(entry.refusals, str) else entry.refusals
    return Unusual(
        unused_seconds=None if entry.unused == "off" else parse_duration(entry.unused),
        new_network=entry.new_network,
        refusals=refusals.limit if refusals else None,
        refusals_seconds=parse_duration(refusals.within) if refusals else 60.0,
        repeat_after_seconds=parse_duration(entry.quiet),
    )


def access_log_of(entry: LogFormat | AccessLogEntry | None) -> AccessLogSettings | None:
    entry = AccessLogEntry(format=entry or "json") if isinstance(entry, str | None) else entry
    if entry.format == "off":
        return None
    return AccessLogSettings(format=entry.format, sample_successes=entry.sample_successes, query=entry.query)


def tracing_of(entry: TracingEntry | None, report: Report) -> Tracing | None:
    if entry is None:
        return None
    if any(name.lower() in ("host", "content-length", "content-type") for name in entry.headers):
        report.problem(("tracing", "headers"), "must not hold Host, Content-Length or Content-Type")
    return Tracing(
        endpoint=_whole(entry.endpoint),
        sample=entry.sample,
        parent=entry.parent,
        service=entry.service,
        headers=MappingProxyType(dict(entry.headers)),
        timeout=parse_duration(entry.timeout),
    )


def _whole(endpoint: str) -> str:
    """With the path that OTLP/HTTP has for spans, where none is written."""
    return endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
