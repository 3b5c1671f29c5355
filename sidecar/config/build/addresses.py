"""Where the sidecar listens, and whether an upstream's address leads back there: requests would go round in circles."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from posixpath import normpath

from sidecar.config.document import Document, UpstreamSettings
from sidecar.config.errors import Path, Report
from sidecar.config.fields import Address

_EVERY = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - where others bind
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def bound(addresses: Sequence[Address]) -> Sequence[Address]:
    """`addresses`, and that of IPv4 if `[::]` means both families."""
    ipv4 = {address.port for address in addresses if address.host and ":" not in address.host}
    both = [at for at in addresses if at.host == "::" and at.port not in ipv4]
    return [*addresses, *(Address(host=_EVERY[4], port=at.port) for at in both)]


def reaches(upstream: Address, listener: Address, *, here: bool = False) -> bool:
    """Whether the upstream's address leads to a listener. here: its host is known to be this one."""
    if upstream.path or listener.path:
        return normpath(upstream.path) == normpath(listener.path)
    if upstream.port != listener.port:
        return False
    bound = set(_LOOPBACK.values()) if listener.host == "localhost" else {_unmapped(listener.host)}
    return not bound.isdisjoint(_reached(_unmapped(upstream.host), here=here))


def _unmapped(host: str) -> str:
    """In lower case, and an IPv4 address as such where it is written as one of IPv6 (RFC 4291 section 2.5.5.2)."""
    with suppress(ValueError):
        mapped = IPv6Address(host).ipv4_mapped
        return host.lower() if mapped is None else str(mapped)
    return host.lower()


def _reached(host: str, *, here: bool) -> set[str]:
    """Hosts whose listeners a connection to `host` may reach."""
    if host == "localhost":
        return {*_EVERY.values(), *_LOOPBACK.values()}
    try:
        address = ip_address(host)
    except ValueError:
        return {host, *(_EVERY.values() if here else ())}
    if address.is_unspecified:
        return {host, _LOOPBACK[address.version]}
    return {host, _EVERY[address.version]} if here or address.is_loopback else {host}


def check_addresses(document: Document, report: Report) -> None:
    if document.decision is not None and not document.trusted_proxies:
        report.problem(("decision",), "answers trusted proxies only: name the one in front in trusted_proxies")
    if document.proxy_protocol and not document.trusted_proxies and not all(at.path for at in document.listen or ()):
        report.problem(("proxy_protocol",), "is for trusted proxies only: name the one in front in trusted_proxies")
    used: dict[Address, str] = {}
    listeners = {
        "listen": document.listen,
        "ops": document.ops,
        "admin": document.admin.listen if document.admin else None,
        "decision": document.decision.listen if document.decision else None,
    }
    for name, addresses in listeners.items():
        path = (name, "listen") if "listen" in report.names((name,)) else (name,)
        for at, address in report.one_or_numbered(path, addresses or ()):
            if address in used:
                taken = "in the list" if used[address] == name else f"the address of {used[address]}"
                report.problem(at, f"is {taken} already")
            elif address.port or address.path:
                used[address] = name
    for at, upstream in _upstreams(document):
        own = next((name for name, addresses in listeners.items() if _leads_to(upstream, addresses)), None)
        if own is not None and report.sound(at):
            report.problem(at, f"is the sidecar itself, at the address of {own}: name the service's own")


def _upstreams(document: Document) -> Iterator[tuple[Path, UpstreamSettings]]:
    if document.upstream is not None:
        yield ("upstream",), document.upstream
    yield from ((("upstreams", name), upstream) for name, upstream in (document.upstreams or {}).items())


def _leads_to(upstream: UpstreamSettings, addresses: Sequence[Address] | None) -> bool:
    return any(reaches(upstream.address, address) for address in bound(addresses or ()))
