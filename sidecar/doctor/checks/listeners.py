"""Judgements of listeners, of who reaches them, and of the certificate that they show."""

from ipaddress import ip_address
from typing import Final

from sidecar.config.settings import Address
from sidecar.doctor.facts import CertificateSeen, Seen, Unseen
from sidecar.doctor.report import Finding, ok, problem, span, unchecked, warning

SOON_SECONDS: Final = 14 * 86_400
_OPEN_FILES_BESIDE: Final = 64
"""Store, logs, listeners, and the event loop's own."""


def local(address: Address) -> bool:
    """Whether only this host reaches it."""
    if address.path or address.host == "localhost":
        return True
    try:
        return ip_address(address.host).is_loopback
    except ValueError:
        return False


def data(seen: Seen) -> Finding:
    """Keys should not cross a network in the clear."""
    config = seen.config
    if config.tls is not None:
        return ok(f"{config.listen}, with TLS")
    if local(config.listen):
        return ok(f"{config.listen}, for this host only")
    if config.trusted_proxies:
        return ok(f"{config.listen}, without TLS, behind the trusted proxies")
    return warning(
        f"{config.listen} is open to the network, without TLS",
        why="Keys cross the network in the clear, unless a proxy or a mesh in front brings TLS.",
        do="Set `tls`, or put a proxy in front and name it in trusted_proxies.",
    )


def ops(seen: Seen) -> Finding:
    address = seen.config.ops
    if address is None:
        return ok("none")
    if local(address):
        return ok(f"{address}, for this host only")
    if seen.host.in_kubernetes:
        return ok(f"{address}: in Kubernetes probes and Prometheus come from outside the pod; keep clients away")
    return warning(
        f"{address} is open to the network",
        why="Anybody there reads the metrics: routes, numbers of keys, refusals (never a key).",
        do="Bind it to an address that only the platform reaches, or filter its port.",
    )


def admin(seen: Seen) -> Finding | None:
    """It speaks no TLS of its own."""
    settings = seen.config.admin
    if settings is None:
        return ok("closed, for there is no admin token")
    if local(settings.listen):
        return ok(f"{settings.listen}, for this host only")
    why = "It speaks no TLS: an admin token that crosses the network can be read, and issues any key."
    if settings.hosts:
        return warning(
            f"{settings.listen} is open to the network, as {', '.join(settings.hosts)}",
            why=f"{why} Doctor cannot see whether TLS is put before it.",
            do="Make sure that only a proxy with TLS reaches this port.",
        )
    return problem(
        f"{settings.listen} is open to the network",
        why=why,
        do="Bind it to 127.0.0.1, or put a proxy with TLS before it and name its host in admin.hosts.",
    )


def certificates(seen: Seen) -> Finding | None:
    """Of the listener, and the client certificate for the upstream."""
    if seen.files.listener_tls:
        return problem(
            seen.files.listener_tls,
            why="The sidecar does not start with such a certificate; one that runs keeps the one before.",
            do="Put the certificate and the key that belongs to it there, both in PEM.",
        )
    found = seen.files.certificates
    if not found:
        return None
    readable = [one for one in found if isinstance(one, CertificateSeen)]
    if len(readable) < len(found):
        return unchecked("; ".join(one.reason for one in found if isinstance(one, Unseen)))
    first = min(readable, key=lambda one: one.ends_at)
    latest = max(readable, key=lambda one: one.begins_at)
    if latest.begins_at > seen.now:
        return problem(
            f"{latest.path} is not valid before {span(latest.begins_at - seen.now)} from now",
            why="Nobody accepts it until then.",
            do="Look at this host's clock, or use a certificate that is valid.",
        )
    return ending(first.path, first.ends_at - seen.now)


def ending(what: str, left: float) -> Finding:
    """Of a certificate that is valid for `left` seconds more."""
    if left <= 0:
        return problem(
            f"{what} ended {span(left)} ago",
            why="Whoever verifies it ends the connection.",
            do="Renew it now, and look why it was not renewed.",
        )
    if left < SOON_SECONDS:
        return warning(
            f"{what} ends in {span(left)}",
            why="After that, whoever verifies it ends the connection.",
            do="Renew it; the files are read again when they change.",
        )
    return ok(f"{what} is valid for {span(left)} more")


def open_files(seen: Seen) -> Finding:
    """A connection is a file; without any left, nothing more is accepted."""
    limits = seen.config.limits
    needed = limits.connections + seen.config.upstream.max_connections + _OPEN_FILES_BESIDE
    running = not isinstance(seen.host.sidecar, Unseen)
    process = seen.host.own if isinstance(seen.host.sidecar, Unseen) else seen.host.sidecar
    whose = f"the sidecar (process {process.pid})" if running else "a process started from here"
    allowed = process.open_files
    if allowed is None or allowed >= needed:
        told = "any number of" if allowed is None else f"{allowed:,}"
        return ok(f"{whose} may open {told} files; {needed:,} can be needed")
    judge = problem if running else warning
    return judge(
        f"{whose} may open {allowed:,} files; {needed:,} can be needed",
        why=f"limits.connections ({limits.connections:,}) cannot be reached: before that, new connections hang, and "
        "files of the store cannot be opened.",
        do=f"Raise the limit (systemd: LimitNOFILE={needed}; ulimit -n {needed}), or lower limits.connections.",
    )


def loop(seen: Seen) -> Finding:
    if seen.host.uvloop:
        return ok("uvloop")
    return warning(
        "uvloop is not installed; asyncio's own loop is used",
        why="It takes about twice the processor time for a request.",
        do="pip install uvloop",
    )
