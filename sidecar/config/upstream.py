"""The `upstream` section."""

from sidecar.config.addresses import parse_upstream
from sidecar.config.document import UpstreamEntry, UpstreamTlsEntry, given
from sidecar.config.errors import Report
from sidecar.config.settings import UpstreamSettings, UpstreamTls
from sidecar.core.units import parse_duration


def upstream_of(written: str | UpstreamEntry, report: Report) -> UpstreamSettings:
    """A URL alone stands for the URL with every default."""
    entry = UpstreamEntry(url=written) if isinstance(written, str) else written
    url = parse_upstream(entry.url)
    if url.prefix and entry.add_prefix:
        report.problem(("upstream", "add_prefix"), "the URL has a path already, which is put before the client's")
    tls = given(entry.tls)
    if tls is not None and not url.tls:
        report.problem(("upstream", "tls"), "needs an https:// URL")
    return UpstreamSettings(
        address=url.address,
        tls=_tls_of(tls or UpstreamTlsEntry(), report) if url.tls else None,
        authority=url.authority,
        connect_timeout=parse_duration(entry.connect_timeout),
        answer_timeout=parse_duration(entry.answer_timeout),
        idle_timeout=parse_duration(entry.idle_timeout),
        max_connections=entry.max_connections,
        queue_timeout=parse_duration(entry.queue_timeout),
        host=entry.host,
        strip_prefix=entry.strip_prefix,
        add_prefix=entry.add_prefix or url.prefix,
    )


def _tls_of(entry: UpstreamTlsEntry, report: Report) -> UpstreamTls:
    if (given(entry.certificate) is None) != (given(entry.key) is None):
        report.problem(("upstream", "tls"), "certificate and key go together")
    return UpstreamTls(
        ca=given(entry.ca) or "",
        certificate=given(entry.certificate) or "",
        key=given(entry.key) or "",
        server_name=given(entry.server_name) or "",
    )
