"""The `tls` and `limits` sections: how the data listener receives clients."""

from sidecar.config.document import LimitsEntry, ListenerTlsEntry, given
from sidecar.config.errors import Report
from sidecar.config.settings import Limits, ListenerTls
from sidecar.core.units import parse_duration, parse_size


def listener_tls_of(entry: ListenerTlsEntry | None) -> ListenerTls | None:
    if entry is None:
        return None
    return ListenerTls(certificate=entry.certificate, key=entry.key, client_ca=given(entry.client_ca) or "")


def limits_of(entry: LimitsEntry, report: Report) -> Limits:
    """Caps, in bytes and seconds."""
    body = given(entry.body)
    limits = Limits(
        request_line=parse_size(entry.request_line),
        header=parse_size(entry.header),
        headers=entry.headers,
        head=parse_size(entry.head),
        body=None if body is None else parse_size(body),
        head_timeout=parse_duration(entry.head_timeout),
        body_rate=parse_size(entry.body_rate),
        answer_timeout=parse_duration(entry.answer_timeout),
        idle_timeout=parse_duration(entry.idle_timeout),
        connections=entry.connections,
        connections_per_address=entry.connections_per_address,
    )
    if max(limits.request_line, limits.header) > limits.head:
        report.problem(("limits", "head"), "is less than one request line or header may have")
    return limits
