"""The `decision` section."""

from sidecar.config.addresses import parse_address
from sidecar.config.document import Document
from sidecar.config.errors import Report
from sidecar.config.sections import DecisionEntry
from sidecar.config.settings import DecisionSettings


def decision_of(document: Document, report: Report) -> DecisionSettings | None:
    """An address alone stands for every dialect on it."""
    if document.decision is None:
        return None
    written = document.decision
    entry = DecisionEntry(listen=written) if isinstance(written, str) else written
    listen = parse_address(entry.listen)
    if listen.path:
        where = ("decision",) if isinstance(written, str) else ("decision", "listen")
        report.problem(where, "must be host:port: the peer of a Unix socket has no address to trust")
    if not document.trusted_proxies:
        report.problem(("decision",), "answers trusted proxies only: name the one in front in trusted_proxies")
    return DecisionSettings(listen=listen, dialects=entry.dialects)
