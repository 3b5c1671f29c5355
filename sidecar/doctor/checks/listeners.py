"""Checks of the upstream, of the listeners, and of the running sidecar."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Final

from sidecar.config.build.addresses import bound, reaches
from sidecar.config.fields import Address
from sidecar.doctor.facts import BypassProbe, CertificateFacts, Facts, RunningFacts, Unknown
from sidecar.doctor.findings import Finding, ok, problem, span, unchecked, warning

# The upstream.

_CLOCK_SECONDS: Final = 5.0
_BYPASS: Final = (
    "Clients that connect to it directly bypass the sidecar: they need no key, and it believes any identity header."
)


def bypass(facts: Facts) -> Finding:
    """Whether clients can reach the upstream directly."""
    found, address = facts.bypass, facts.config.upstream.address
    if isinstance(found, Unknown):
        return unchecked(found.reason)
    match found.location:
        case "unix":
            return _socket(found)
        case "loopback":
            return _loopback(found, address.port)
        case "this host":
            return problem(
                f"the upstream listens on {address}, which other hosts can reach",
                why=_BYPASS,
                do=f"Make it listen on 127.0.0.1:{address.port} or a Unix socket, and set "
                f"`{facts.upstream_option}` to that.",
            )
        case "elsewhere":
            return warning(
                f"the upstream is on the network, at {address}",
                why=f"{_BYPASS} Doctor cannot see from here who can reach it.",
                do="Allow only the sidecar to reach it (NetworkPolicy, firewall), or run the sidecar beside it.",
            )


def itself(facts: Facts) -> Finding:
    """Whether the upstream is the sidecar, under another name than the configuration shows."""
    found, config = facts.bypass, facts.config
    if isinstance(found, Unknown):
        return unchecked(found.reason)
    listeners = {"listen": config.listen, "ops": config.ops}
    here = found.location in ("loopback", "this host")
    for name, addresses in listeners.items():
        if any(reaches(config.upstream.address, address, here=here) for address in bound(addresses or ())):
            return problem(
                f"the upstream, {config.upstream.address}, is the sidecar itself, at the address of {name}",
                why="Each request that is let through comes back to the sidecar, again and again.",
                do=f"Set `{facts.upstream_option}` to the address of the service.",
            )
    return ok("another server than the sidecar")


def _loopback(found: BypassProbe, port: int) -> Finding:
    if found.reachable:
        places = ", ".join(map(str, found.reachable))
        return problem(
            f"the upstream is also reachable at {places}",
            why=_BYPASS,
            do=f"Make the upstream listen on 127.0.0.1:{port} only, not on 0.0.0.0 or [::].",
        )
    if not found.tried:
        return ok("the upstream is on loopback, and this host has no other address")
    return ok(f"the upstream is on loopback; port {port} is closed on {', '.join(found.tried)}")


def _socket(found: BypassProbe) -> Finding:
    if found.socket is None:
        return unchecked("the upstream's socket does not exist or cannot be read")
    if found.socket.mode & 0o002:
        return warning(
            f"{found.socket.path} has mode {found.socket.mode:04o}",
            why="Every user of this host can connect to it and bypass the sidecar.",
            do=f"chmod o-rwx {found.socket.path}, or put it in a folder that only the two services can enter.",
        )
    return ok(f"{found.socket.path} has mode {found.socket.mode:04o}")


def connection(facts: Facts) -> Finding:
    """Whether the upstream accepts a connection, made as the sidecar makes it, TLS verification included."""
    found, settings, option = facts.upstream, facts.config.upstream, facts.upstream_option
    verified = " with a verified certificate" if settings.tls else ""
    if not isinstance(found, Unknown):
        return ok(f"{settings.address} accepted a connection in {span(found.seconds)}{verified}")
    return problem(
        f"{settings.address}: {found.reason}",
        why="Every request that the sidecar allows gets 502 or 504.",
        do=f"Start the upstream, or fix its address (`{option}`), its certificate or `{option}.tls`.",
    )


def certificate(facts: Facts) -> Finding | None:
    """Whether the upstream's certificate expires soon."""
    if isinstance(facts.upstream, Unknown) or facts.upstream.certificate_ends_at is None:
        return None
    return _expiry("the upstream's certificate", facts.upstream.certificate_ends_at - facts.now)


def clock(facts: Facts) -> Finding:
    """Whether the clocks agree, by the Date of a response."""
    ahead = Unknown(reason="no connection") if isinstance(facts.upstream, Unknown) else facts.upstream.clock_ahead
    if isinstance(ahead, Unknown):
        return unchecked(f"the upstream's clock: {ahead.reason}")
    if abs(ahead) <= _CLOCK_SECONDS:
        return ok("its Date agrees with this host's clock")
    return warning(
        f"its Date is {span(ahead)} {'ahead of' if ahead > 0 else 'behind'} this host's clock",
        why="One of the two clocks is wrong. This host's clock decides when keys expire and quotas reset.",
        do="Synchronise both hosts by NTP (see timedatectl, chronyc tracking).",
    )


# The listeners.

_SOON_SECONDS: Final = 14 * 86_400
_OTHER_FILES: Final = 1344
"""Of the store, the logs and the event loop, and of the connections to the ops and admin listeners."""


def _open_to_network(addresses: Sequence[Address]) -> str:
    """The addresses that other hosts can reach, with commas between."""
    return _named(address for address in addresses if not _is_local(address))


def _named(addresses: Iterable[Address]) -> str:
    return ", ".join(map(str, addresses))


def _is_local(address: Address) -> bool:
    if address.path or address.host == "localhost":
        return True
    try:
        return ip_address(address.host).is_loopback
    except ValueError:
        return False


def data(facts: Facts) -> Finding:
    """Whether keys cross a network in plain text."""
    config = facts.config
    named, reachable = _named(config.listen), _open_to_network(config.listen)
    if config.tls is not None:
        return ok(f"{named}, with TLS")
    if not reachable:
        return ok(f"{named}, reachable from this host only")
    if config.trusted_proxies:
        return ok(f"{named}, without TLS, behind the trusted proxies")
    return warning(
        f"{reachable}: open to the network, without TLS",
        why="Keys cross the network in plain text, unless a proxy or a mesh in front adds TLS.",
        do="Set `tls`, or put a proxy in front and list it in trusted_proxies.",
    )


def ops(facts: Facts) -> Finding:
    """Whether other hosts can read the metrics."""
    if facts.config.ops is None:
        return ok("not configured")
    reachable = _open_to_network(facts.config.ops)
    if not reachable:
        return ok(f"{_named(facts.config.ops)}, reachable from this host only")
    if facts.host.in_kubernetes:
        return ok(f"{reachable}: in Kubernetes, probes and Prometheus connect from outside the pod; keep clients away")
    return warning(
        f"{reachable}: open to the network",
        why="Anyone there can read the metrics: routes, numbers of keys and refusals (never a key).",
        do="Bind it to an address that only the platform can reach, or filter its port.",
    )


def admin(facts: Facts) -> Finding | None:
    """Whether admin tokens cross a network in plain text: the listener itself has no TLS."""
    settings = facts.config.admin
    if settings is None:
        return ok("off: no admin token is configured")
    reachable = _open_to_network(settings.listen)
    if not reachable:
        return ok(f"{_named(settings.listen)}, reachable from this host only")
    why = "It has no TLS: whoever reads an admin token on the network can issue any key."
    if settings.hosts:
        return warning(
            f"{reachable}: open to the network, under the name {', '.join(settings.hosts)}",
            why=f"{why} Doctor cannot see whether a proxy in front adds TLS.",
            do="Make sure that only a proxy with TLS reaches this port.",
        )
    return problem(
        f"{reachable}: open to the network",
        why=why,
        do="Bind it to 127.0.0.1, or put a proxy with TLS in front and list its host in admin.hosts.",
    )


def certificates(facts: Facts) -> Finding | None:
    """Whether the listener's certificate, and the client certificate for the upstream, are valid."""
    if facts.files.listener_tls:
        return problem(
            facts.files.listener_tls,
            why="The sidecar does not start with these files. If it is running, it keeps the previous certificate.",
            do="Provide a certificate and its matching key, both in PEM.",
        )
    found = facts.files.certificates
    if not found:
        return None
    readable = [one for one in found if isinstance(one, CertificateFacts)]
    if len(readable) < len(found):
        return unchecked("; ".join(one.reason for one in found if isinstance(one, Unknown)))
    first = min(readable, key=lambda one: one.ends_at)
    latest = max(readable, key=lambda one: one.begins_at)
    if latest.begins_at > facts.now:
        return problem(
            f"{latest.path} is not valid before {span(latest.begins_at - facts.now)} from now",
            why="Clients reject it until then.",
            do="Check this host's clock, or use a certificate that is valid now.",
        )
    return _expiry(first.path, first.ends_at - facts.now)


def _expiry(what: str, left: float) -> Finding:
    """Judge a certificate that is valid for `left` more seconds."""
    if left <= 0:
        return problem(
            f"{what} expired {span(left)} ago",
            why="Every peer that verifies it closes the connection.",
            do="Renew it now, and find out why it was not renewed.",
        )
    if left < _SOON_SECONDS:
        return warning(
            f"{what} expires in {span(left)}",
            why="After that, every peer that verifies it closes the connection.",
            do="Renew it. The sidecar reads the files again when they change.",
        )
    return ok(f"{what} is valid for another {span(left)}")


def open_files(facts: Facts) -> Finding:
    """Whether the process may open enough files: every connection needs one."""
    limits = facts.config.limits
    listeners = 1 if facts.config.decision is None else 2
    needed = listeners * limits.connections + facts.config.upstream_connections + _OTHER_FILES
    running = not isinstance(facts.host.sidecar, Unknown)
    process = facts.host.own if isinstance(facts.host.sidecar, Unknown) else facts.host.sidecar
    whose = f"the sidecar (process {process.pid})" if running else "a process started from here"
    allowed = process.open_files
    if allowed is None or allowed >= needed:
        number = "any number of" if allowed is None else f"{allowed:,}"
        return ok(f"{whose} may open {number} files; it needs up to {needed:,}")
    result = problem if running else warning
    return result(
        f"{whose} may open {allowed:,} files; it needs up to {needed:,}",
        why=f"The sidecar lowers limits.connections ({limits.connections:,}) to what there is room for, and refuses "
        "connections above that.",
        do=f"Raise the limit (systemd: LimitNOFILE={needed}; ulimit -n {needed}), or lower limits.connections.",
    )


def loop(facts: Facts) -> Finding:
    """Whether the faster event loop is installed."""
    if facts.host.uvloop:
        return ok("uvloop")
    return warning(
        "uvloop is not installed, so asyncio's default loop is used",
        why="It needs about twice the CPU time per request.",
        do="pip install uvloop",
    )


_FAULTS: Final = {
    "sidecar_background_failures_total": "failed attempts to write usage and quotas",
    "sidecar_usage_dropped_total": "dropped usage counts",
    "sidecar_access_log_dropped_total": "dropped access log lines",
    "sidecar_log_dropped_total": "dropped lines of stderr",
}
_NEEDS_RESTART: Final = "needs a restart"


def readiness(facts: Facts) -> Finding:
    """Whether /readyz reports that it is ready."""
    found = facts.running
    if isinstance(found, Unknown):
        return unchecked(found.reason, do="Run doctor where the sidecar runs, with its SIDECAR_* variables.")
    if found.ready:
        return ok(f"ready, /readyz took {span(found.seconds)}")
    return problem(
        "not ready: " + "; ".join(line for line in found.lines if not line.endswith(": ok")),
        why="Load balancers send it no requests, and it may be unable to verify keys.",
        do="Fix what it names. `sidecar_store_seconds` and stderr show more.",
    )


def configuration(facts: Facts) -> Finding | None:
    """Whether the running configuration is that of the file."""
    found = facts.running
    if isinstance(found, Unknown):
        return None
    remark = next((line for line in found.lines if line.startswith("config:") and not line.endswith(": ok")), "")
    if found.metrics.get("sidecar_config_last_reload_successful") == 0:
        return problem(
            remark or "the last reload failed",
            why="The previous configuration stays in force, and later changes have no effect.",
            do=f"`sidecar check {facts.config.path}` prints what is wrong with it.",
        )
    expected = f'sidecar_config_info{{sha256="{facts.config.sha256}"}}'
    if expected in found.metrics:
        return _in_force(remark)
    if not any(sample.startswith("sidecar_config_info") for sample in found.metrics):
        return unchecked("it does not report which configuration is in force")
    return warning(
        f"the running configuration is not that of {facts.config.path}",
        why="The sidecar uses another file, or has not read this one since it changed.",
        do="Send it SIGHUP, then run doctor again with the file and the variables that it was started with.",
    )


def _in_force(remark: str) -> Finding:
    if _NEEDS_RESTART not in remark:
        return ok("the running configuration is that of the file")
    return warning(
        remark,
        why="A reload cannot change these settings, so the sidecar still runs with their old values.",
        do="Restart the sidecar.",
    )


def writes(facts: Facts) -> Finding | None:
    """Whether the store took the last change of the running sidecar."""
    found = facts.running
    writable = None if isinstance(found, Unknown) else found.metrics.get("sidecar_store_writable")
    if isinstance(found, Unknown) or writable is None:
        return None
    if writable:
        return ok("the store took the last change")
    problem_line = next((line for line in found.lines if line.startswith("store: the last change")), "")
    return problem(
        problem_line.removeprefix("store: ") or "the store did not take the last change",
        why="Requests are still decided on, but keys cannot be issued or revoked, and usage and quotas are not kept.",
        do="Do what it says. The metric `sidecar_store_writable` is 1 once a change was written.",
    )


def program(facts: Facts) -> Finding | None:
    """Whether the running sidecar has the version of this program."""
    found = facts.running
    if isinstance(found, Unknown):
        return None
    builds = [sample for sample in found.metrics if sample.startswith("sidecar_build_info")]
    if any(f'version="{facts.version}"' in build for build in builds):
        return ok(f"version {facts.version}, the same as doctor")
    return warning(
        f"the running version is not doctor's ({facts.version})",
        why="Some findings may not apply to the running version.",
        do="Run the doctor of the running version, or restart the sidecar with this one.",
    )


def faults(facts: Facts) -> Finding | None:
    """Whether the running sidecar has dropped anything since its start."""
    found = facts.running
    if isinstance(found, Unknown):
        return None
    counts = {text: _sum(found, name) for name, text in _FAULTS.items()}
    some = [f"{count:,.0f} {text}" for text, count in counts.items() if count]
    if not some:
        return ok("nothing was dropped, and no background task failed")
    return warning(
        f"since the sidecar started: {'; '.join(some)}",
        why="Dropped data is missing from usage, quotas or logs.",
        do="Check the store (locked? disk full?) and whatever reads the log. stderr shows when it happened.",
    )


def _sum(found: RunningFacts, name: str) -> float:
    return sum(value for sample, value in found.metrics.items() if sample.partition("{")[0] == name)
