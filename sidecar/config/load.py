"""A configuration file to one `Config`, or to everything that is wrong with it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from types import MappingProxyType

from sidecar.config.addresses import parse_address, parse_network, parse_store
from sidecar.config.answers import errors_of, identity_of
from sidecar.config.build.admin import admin_of
from sidecar.config.build.keys import keys_of
from sidecar.config.build.policy import Vocabulary, routes_of
from sidecar.config.build.telemetry import access_log_of, tracing_of
from sidecar.config.decision import decision_of
from sidecar.config.decoder import walk
from sidecar.config.document import (
    Document,
    IdentityEntry,
    KeysEntry,
    LimitsEntry,
    PathsEntry,
    RateLimitHeadersEntry,
    UnmatchedEntry,
)
from sidecar.config.errors import Place, Report, refusal
from sidecar.config.life import drain_of, reload_of
from sidecar.config.listener import limits_of, listener_tls_of
from sidecar.config.overrides import graft
from sidecar.config.quotas import charges_of, plans_of, quotas_of
from sidecar.config.scopes import catalogue_of
from sidecar.config.sections import AdminEntry, DecisionEntry, DrainEntry, ReloadEntry
from sidecar.config.settings import Address, Config, RateLimitHeaders, UpstreamSettings
from sidecar.config.upstream import upstream_of
from sidecar.config.usage import UsageEntry, usage_of
from sidecar.config.yaml_tree import MAX_BYTES, read_nodes
from sidecar.core.model import Quota
from sidecar.core.scopes import Catalogue

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
