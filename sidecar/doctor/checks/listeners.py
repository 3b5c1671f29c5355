"""Judgements of listeners, of who reaches them, and of the certificate that they show."""

from ipaddress import ip_address
from typing import Final

from sidecar.config.fields import Address
from sidecar.doctor.facts import BypassProbe, CertificateFacts, Facts, Unknown
from sidecar.doctor.report import Finding, ok, problem, span, unchecked, warning

# Judgements of the upstream: whether it answers, and whether it answers past the sidecar.


CLOCK_SECONDS: Final = 5.0


def around(seen: Facts) -> Finding:
    """Whoever reaches the upstream directly needs no key, and may write any identity header."""
    found, address = seen.around, seen.config.upstream.address
    if isinstance(found, Unknown):
        return unchecked(found.reason)
    match found.location:
        case "unix":
            return _socket(found)
        case "loopback":
            return _loopback(found, address.port)
        case "this host":
            return problem(
                f"the upstream listens at {address}, an address of this host that others reach",
                why=_PAST,
                do=f"Let it listen at 127.0.0.1:{address.port} or a Unix socket, and name that in `upstream`.",
            )
        case "elsewhere":
            return warning(
                f"the upstream is on the network, at {address}",
                why=f"{_PAST} Doctor cannot see from here who reaches it.",
                do="Let nothing but the sidecar reach it (NetworkPolicy, firewall), or put the sidecar beside it.",
            )


_PAST: Final = "Who reaches it there goes past the sidecar: no key is needed, and any identity header is believed."


def _loopback(found: BypassProbe, port: int) -> Finding:
    if found.answered:
        places = ", ".join(map(str, found.answered))
        return problem(
            f"the upstream's port answers at {places}, too",
            why=_PAST,
            do=f"Let the upstream listen at 127.0.0.1:{port} only, not at 0.0.0.0 or [::].",
        )
    if not found.tried:
        return ok(f"it is asked on loopback; this host has no other address on which port {port} could answer")
    return ok(f"it is asked on loopback; nothing answers at port {port} of {', '.join(found.tried)}")


def _socket(found: BypassProbe) -> Finding:
    if found.socket is None:
        return unchecked("the upstream's socket is not there or cannot be looked at")
    if found.socket.mode & 0o002:
        return warning(
            f"{found.socket.path} has mode {found.socket.mode:04o}",
            why="Every user of this host may connect, and goes past the sidecar.",
            do=f"chmod o-rwx {found.socket.path}, or put it in a folder that only both services may enter.",
        )
    return ok(f"{found.socket.path} has mode {found.socket.mode:04o}")


def connection(seen: Facts) -> Finding:
    """As the sidecar makes it, TLS and its verification included."""
    found, settings = seen.upstream, seen.config.upstream
    verified = ", its certificate verified" if settings.tls else ""
    if not isinstance(found, Unknown):
        return ok(f"{settings.address} took a connection in {span(found.seconds)}{verified}")
    return problem(
        f"{settings.address}: {found.reason}",
        why="Every request that the gate allows is answered with 502 or 504.",
        do="Start the upstream, or mend its address (`upstream`), its certificate or `upstream.tls`.",
    )


def certificate(seen: Facts) -> Finding | None:
    if isinstance(seen.upstream, Unknown) or seen.upstream.certificate_ends_at is None:
        return None
    return ending("the upstream's certificate", seen.upstream.certificate_ends_at - seen.now)


def clock(seen: Facts) -> Finding:
    """By the Date of an answer."""
    ahead = Unknown(reason="no connection") if isinstance(seen.upstream, Unknown) else seen.upstream.clock_ahead
    if isinstance(ahead, Unknown):
        return unchecked(f"the upstream's clock: {ahead.reason}")
    if abs(ahead) <= CLOCK_SECONDS:
        return ok("its Date agrees with this host's clock")
    return warning(
        f"its Date is {span(ahead)} {'ahead of' if ahead > 0 else 'behind'} this host's clock",
        why="One of the two is wrong. By this host's, keys expire and quotas begin anew.",
        do="Let both hosts take the time from NTP (timedatectl, chronyc tracking).",
    )


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


def data(seen: Facts) -> Finding:
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


def ops(seen: Facts) -> Finding:
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


def admin(seen: Facts) -> Finding | None:
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


def certificates(seen: Facts) -> Finding | None:
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
    readable = [one for one in found if isinstance(one, CertificateFacts)]
    if len(readable) < len(found):
        return unchecked("; ".join(one.reason for one in found if isinstance(one, Unknown)))
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


def open_files(seen: Facts) -> Finding:
    """A connection is a file; without any left, nothing more is accepted."""
    limits = seen.config.limits
    needed = limits.connections + seen.config.upstream.max_connections + _OPEN_FILES_BESIDE
    running = not isinstance(seen.host.sidecar, Unknown)
    process = seen.host.own if isinstance(seen.host.sidecar, Unknown) else seen.host.sidecar
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


def loop(seen: Facts) -> Finding:
    if seen.host.uvloop:
        return ok("uvloop")
    return warning(
        "uvloop is not installed; asyncio's own loop is used",
        why="It takes about twice the processor time for a request.",
        do="pip install uvloop",
    )
