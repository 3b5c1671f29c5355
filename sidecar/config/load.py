"""A configuration file to one `Config`, or to everything that is wrong with it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from types import MappingProxyType

from sidecar.config.build.admin import admin_of
from sidecar.config.build.keys import keys_of
from sidecar.config.build.policy import (
    Vocabulary,
    catalogue_of,
    charges_of,
    errors_of,
    identity_of,
    plans_of,
    quotas_of,
    routes_of,
)
from sidecar.config.build.telemetry import access_log_of, tracing_of, usage_of
from sidecar.config.decoder import walk
from sidecar.config.document import (
    AdminEntry,
    DecisionEntry,
    Document,
    DrainEntry,
    IdentityEntry,
    KeysEntry,
    LimitsEntry,
    ListenerTlsEntry,
    PathsEntry,
    RateLimitHeadersEntry,
    ReloadEntry,
    UnmatchedEntry,
    UpstreamEntry,
    UpstreamTlsEntry,
    UsageEntry,
    given,
)
from sidecar.config.errors import Place, Report, refusal
from sidecar.config.fields import parse_address, parse_network, parse_store, parse_upstream
from sidecar.config.settings import (
    Address,
    Config,
    DecisionSettings,
    Drain,
    Limits,
    ListenerTls,
    RateLimitHeaders,
    Reload,
    UpstreamSettings,
    UpstreamTls,
)
from sidecar.config.yaml_tree import MAX_BYTES, Entries, Node, Scalar, read_nodes
from sidecar.core.model import Quota
from sidecar.core.scopes import Catalogue
from sidecar.core.units import parse_duration, parse_size

# Addresses and URLs given on the command line or in the environment, put in the place of the file's.


NAMES = ("listen", "ops", "admin", "upstream", "store", "limiter")
"""What can be overridden: by `--listen` or `SIDECAR_LISTEN`, and so on."""

_SETTINGS = {"upstream": "url", "admin": "listen"}
"""Where the file says more than the address, what of it is the address."""


class Override(str):
    """A value that knows where it came from. A plain str came from the option of its name."""

    __slots__ = ("source",)

    source: str

    def __new__(cls, value: str, source: str) -> "Override":
        made = super().__new__(cls, value)
        made.source = source
        return made


def overrides_from(environ: Mapping[str, str]) -> dict[str, str]:
    """The `SIDECAR_LISTEN`, … that are set and not empty."""
    variables = {name: f"SIDECAR_{name.upper()}" for name in NAMES}
    return {
        name: Override(environ[variable], variable) for name, variable in variables.items() if environ.get(variable)
    }


def graft(root: Node, overrides: Mapping[str, str]) -> Node:
    """`root` with each override in place of what the file says; the settings beside an address stay."""
    if not isinstance(root, Entries):
        return root
    entries = list(root.entries)
    for name, value in overrides.items():
        _set(entries, name, Scalar(value, "str", Place(getattr(value, "source", f"--{name}")), literal=True))
    return Entries(tuple(entries), root.place)


def _set(entries: list[tuple[Scalar, Node]], name: str, new: Scalar) -> None:
    at = next((index for index, (key, _) in enumerate(entries) if key.text == name), None)
    if at is None:
        entries.append((Scalar(name, "str", new.place), new))
        return
    key, old = entries[at]
    if name in _SETTINGS and isinstance(old, Entries):
        settings = list(old.entries)
        _set(settings, _SETTINGS[name], new)
        entries[at] = (key, Entries(tuple(settings), old.place))
    else:
        entries[at] = (key, new)


# The `reload` and `drain` sections: how a running sidecar changes, and ends.


def reload_of(entry: ReloadEntry) -> Reload:
    return Reload(watch=entry.watch, interval=parse_duration(entry.interval))


def drain_of(entry: DrainEntry) -> Drain:
    return Drain(delay=parse_duration(entry.delay), timeout=parse_duration(entry.timeout))


# The `tls` and `limits` sections: how the data listener receives clients.


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


# The `upstream` section.


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


# The `decision` section.


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


_NONE: Mapping[str, str] = MappingProxyType({})
_NEEDED = {
    "listen": "`listen: host:port`",
    "upstream": "`upstream: http://host:port`",
    "store": "`store: sqlite:///path`",
}


def load(path: str, *, overrides: Mapping[str, str] = _NONE, environ: Mapping[str, str]) -> Config:
    """The configuration in the file at `path`.

    overrides: `listen`, `ops`, `admin`, `upstream`, `store`, `limiter` that win over the file's; taken literally.
    environ: what `${VAR}` in the file stands for, and where SIDECAR_ADMIN_TOKEN may be.
    Raises ConfigError with every problem at once. Blocks: it reads the file.
    """
    text = _read(path)
    root = graft(read_nodes(text, path), overrides)
    report = Report(root.place)
    document = walk(root, Document, report, environ)
    if document is None:
        report.close()
    config = _config(path, document or Document(), report, environ)
    report.close()
    return replace(config, sha256=sha256(text).hexdigest())


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise refusal(Place(path), f"cannot be read: {reason or 'not a path'}") from None


def _without_waiting(path: str, flags: int) -> int:
    """Opening a named pipe that nobody writes to would never end; read at once, it is empty."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def _config(path: str, document: Document, report: Report, environ: Mapping[str, str]) -> Config:
    _check(document, report)
    catalogue = catalogue_of(document, report)
    quotas = quotas_of(document, report)
    plans = plans_of(document, report)
    keys = document.keys or KeysEntry()
    words = _words(document, catalogue, quotas, report)
    errors, default_error = errors_of(document.errors or {}, report)
    unmatched = (document.unmatched or UnmatchedEntry()).quotas
    return Config(
        path=path,
        listen=_address(document.listen) or Address(),
        tls=listener_tls_of(document.tls),
        limits=limits_of(document.limits or LimitsEntry(), report),
        ops=_address(document.ops),
        admin=admin_of(document.admin, environ, report, catalogue=catalogue, plans=plans),
        upstream=upstream_of(document.upstream, report) if document.upstream else UpstreamSettings(address=Address()),
        store=parse_store(document.store) if document.store else "",
        limiter=document.limiter or "memory",
        keys=keys_of(keys, catalogue, report),
        catalogue=catalogue,
        quotas=quotas,
        plans=plans,
        routes=routes_of(document.routes or (), words, report),
        unmatched_charges=charges_of(unmatched, ("unmatched", "quotas"), quotas, report),
        case_sensitive=words.case_sensitive,
        identity=identity_of(document.identity or IdentityEntry(), keys, report),
        trusted_proxies=tuple(map(parse_network, document.trusted_proxies or ())),
        forwarded_header=document.forwarded_header or "X-Forwarded-For",
        errors=errors,
        default_error=default_error,
        rate_limit_headers=_rate_limit_headers(document.rate_limit_headers or RateLimitHeadersEntry()),
        realm="api" if document.realm is None else document.realm,
        access_log=access_log_of(document.access_log),
        tracing=tracing_of(document.tracing, report),
        decision=decision_of(document, report),
        usage=usage_of(document.usage or UsageEntry(), report),
        reload=reload_of(document.reload or ReloadEntry()),
        drain=drain_of(document.drain or DrainEntry()),
    )


def _words(document: Document, catalogue: Catalogue, quotas: Mapping[str, Quota], report: Report) -> Vocabulary:
    return Vocabulary(
        catalogue=catalogue,
        quotas=quotas,
        environments=report.names(("keys", "environments")) or tuple((document.keys or KeysEntry()).environments),
        case_sensitive=(document.paths or PathsEntry()).case_sensitive,
    )


def _rate_limit_headers(entry: RateLimitHeadersEntry) -> RateLimitHeaders:
    return RateLimitHeaders(x=entry.x, reset=entry.reset, ietf=entry.ietf)


def _check(document: Document, report: Report) -> None:
    _check_needed(document, report)
    _check_distinct(document, report)


def _check_needed(document: Document, report: Report) -> None:
    for name, example in _NEEDED.items():
        if getattr(document, name) is None and report.sound((name,)):
            report.problem((name,), f"missing: write {example}, or give --{name} or SIDECAR_{name.upper()}")


def _check_distinct(document: Document, report: Report) -> None:
    seen: dict[Address, str] = {}
    for name in ("listen", "ops", "admin", "decision"):
        written = getattr(document, name)
        address = _address(written.listen if isinstance(written, AdminEntry | DecisionEntry) else written)
        if address in seen:
            report.problem((name,), f"is the address of {seen[address]} already")
        if address and (address.port or address.path):
            seen[address] = name


def _address(text: str | None) -> Address | None:
    return None if text is None else parse_address(text)
