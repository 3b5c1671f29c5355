"""The `access_log` and `tracing` sections: what is written of each request, and where to."""

import re
from types import MappingProxyType
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, field

from sidecar.config.entry import Entry
from sidecar.config.fields import HeaderValue, Timeout, Token
from sidecar.config.settings import AccessLogSettings, Tracing
from sidecar.config.errors import Report
from sidecar.core.units import parse_duration

LogFormat = Literal["json", "combined", "off"]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
_SERVICE = re.compile(r"[ -~]{0,200}")


def _check_collector(text: str) -> None:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("is no URL: write http://host:4318") from None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0 or not text.isascii():
        raise ValueError("must be the OTLP/HTTP address of a collector: http://host:4318 or https://host/v1/traces")
    if url.username is not None or url.query or url.fragment:
        raise ValueError("must hold no user, query or fragment: credentials belong in tracing.headers")


def _check_service(text: str) -> None:
    if not _SERVICE.fullmatch(text):
        raise ValueError("must be up to 200 printable ASCII characters")


Collector = Annotated[
    str,
    Meta(
        description="http://host:port or https://host:port, with a path or without",
        pattern="^[hH][tT][tT][pP][sS]?://.+$",
        extra={"check": _check_collector},
    ),
]
ServiceName = Annotated[
    str, Meta(description="the name of a service", pattern="^[ -~]{0,200}$", extra={"check": _check_service})
]


class AccessLogEntry(Entry, frozen=True, kw_only=True):
    """How the access log is written, and of which requests."""

    format: LogFormat = "json"
    sample_successes: Share = 1.0
    query: Literal["none", "redacted"] = "none"


class TracingEntry(Entry, frozen=True, kw_only=True):
    """Where spans are sent, and of how many requests."""

    endpoint: Collector
    sample: Share = 0.1
    parent: Literal["anyone", "trusted_proxies", "nobody"] = "anyone"
    service: ServiceName = ""
    headers: dict[Token, HeaderValue] = field(default_factory=dict)
    timeout: Timeout = "10s"


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
