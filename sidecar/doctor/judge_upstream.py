"""Judgements of the upstream: whether it answers, and whether it answers past the sidecar."""

from typing import Final

from sidecar.doctor.checks.listeners import ending
from sidecar.doctor.facts import Seen, Unseen, WayAround
from sidecar.doctor.report import Finding, ok, problem, span, unchecked, warning

CLOCK_SECONDS: Final = 5.0


def around(seen: Seen) -> Finding:
    """Whoever reaches the upstream directly needs no key, and may write any identity header."""
    found, address = seen.around, seen.config.upstream.address
    if isinstance(found, Unseen):
        return unchecked(found.reason)
    match found.whereabouts:
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


def _loopback(found: WayAround, port: int) -> Finding:
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


def _socket(found: WayAround) -> Finding:
    if found.socket is None:
        return unchecked("the upstream's socket is not there or cannot be looked at")
    if found.socket.mode & 0o002:
        return warning(
            f"{found.socket.path} has mode {found.socket.mode:04o}",
            why="Every user of this host may connect, and goes past the sidecar.",
            do=f"chmod o-rwx {found.socket.path}, or put it in a folder that only both services may enter.",
        )
    return ok(f"{found.socket.path} has mode {found.socket.mode:04o}")


def connection(seen: Seen) -> Finding:
    """As the sidecar makes it, TLS and its verification included."""
    found, settings = seen.upstream, seen.config.upstream
    verified = ", its certificate verified" if settings.tls else ""
    if not isinstance(found, Unseen):
        return ok(f"{settings.address} took a connection in {span(found.seconds)}{verified}")
    return problem(
        f"{settings.address}: {found.reason}",
        why="Every request that the gate allows is answered with 502 or 504.",
        do="Start the upstream, or mend its address (`upstream`), its certificate or `upstream.tls`.",
    )


def certificate(seen: Seen) -> Finding | None:
    if isinstance(seen.upstream, Unseen) or seen.upstream.certificate_ends_at is None:
        return None
    return ending("the upstream's certificate", seen.upstream.certificate_ends_at - seen.now)


def clock(seen: Seen) -> Finding:
    """By the Date of an answer."""
    ahead = Unseen(reason="no connection") if isinstance(seen.upstream, Unseen) else seen.upstream.clock_ahead
    if isinstance(ahead, Unseen):
        return unchecked(f"the upstream's clock: {ahead.reason}")
    if abs(ahead) <= CLOCK_SECONDS:
        return ok("its Date agrees with this host's clock")
    return warning(
        f"its Date is {span(ahead)} {'ahead of' if ahead > 0 else 'behind'} this host's clock",
        why="One of the two is wrong. By this host's, keys expire and quotas begin anew.",
        do="Let both hosts take the time from NTP (timedatectl, chronyc tracking).",
    )
