"""The `upstream` section."""

from sidecar.config.addresses import parse_upstream
from sidecar.config.document import UpstreamEntry
from sidecar.config.model import UpstreamSettings
from sidecar.config.problems import Report
from sidecar.core.durations import parse_duration


def upstream_of(written: str | UpstreamEntry, report: Report) -> UpstreamSettings:
    """A URL alone stands for the URL with every default."""
    entry = UpstreamEntry(url=written) if isinstance(written, str) else written
    url = parse_upstream(entry.url)
    if url.prefix and entry.add_prefix:
        report.problem(("upstream", "add_prefix"), "the URL has a path already, which is put before the client's")
    return UpstreamSettings(
        address=url.address,
        tls=url.tls,
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
