"""Judgements of what the configuration says."""

from typing import Final

from sidecar.doctor.facts import Facts, Unknown
from sidecar.doctor.report import Finding, ok, problem, span, unchecked, warning

PROBES: Final = frozenset(
    {"health", "healthz", "livez", "readyz", "live", "ready", "liveness", "readiness", "ping", "status", "up"}
)
"""Last segments of paths that platforms ask without a key."""
_NGINX_LINE: Final = 8 * 1024
_NGINX_HEAD: Final = 32 * 1024
_ENVOY_HEAD: Final = 60 * 1024
_KUBERNETES_GRACE: Final = 30.0
_MARGIN: Final = 2.0
_READING: Final = {"GET", "HEAD", "OPTIONS"}
_WIDE: Final = {4: 8, 6: 16}
"""Networks with a shorter prefix are too wide."""


def changes(seen: Facts) -> Finding:
    """A file that is a mount of its own is never replaced by the platform."""
    if not seen.config.reload.watch:
        return ok("changes take effect on SIGHUP (reload.watch is off)")
    if not seen.files.config_alone:
        return ok(f"a change is seen within {span(seen.config.reload.interval)}")
    return warning(
        f"{seen.config.path} is mounted by itself (subPath)",
        why="Kubernetes never updates such a file, so that a changed ConfigMap takes no effect.",
        do="Mount the ConfigMap as a folder, without subPath, and name the file in it.",
    )


def config_mode(seen: Facts) -> Finding:
    """Who may write the file decides who comes in."""
    file, secrets = seen.files.config, seen.files.literal_secrets
    if isinstance(file, Unknown):
        return unchecked(file.reason)
    saw = f"mode {file.mode:04o}"
    if file.mode & 0o002:
        return problem(
            f"{saw}: everybody may write it",
            why="Who writes the configuration opens any route, or sends every key to a service of their own.",
            do=f"chmod o-w {file.path}",
        )
    if secrets and file.mode & 0o044:
        return problem(
            f"{saw}, and a secret stands in it (keys.imported: pepper)",
            why="Others than its owner may read the file, and so the secret.",
            do="Write ${VARIABLE} in its place, and set the variable from a secret; or chmod 0600.",
        )
    if file.mode & 0o020:
        return warning(
            f"{saw}: its group may write it",
            why="Who writes the configuration opens any route.",
            do=f"chmod g-w {file.path}",
        )
    return ok(f"{saw}, no secret in it" if not secrets else f"{saw}, a secret in it")


def public_routes(seen: Facts) -> Finding:
    """What anybody may do, and whether that is much."""
    routes = [route for route in seen.config.routes if route.policy.public]
    if not routes:
        return ok("none: nothing passes without a key")
    wide = [route.name for route in routes if route.pattern.strip("/*") == ""]
    writing = [route.name for route in routes if not route.methods <= _READING]
    told = ", ".join(route.name for route in routes)
    if not wide and not writing:
        return ok(f"no key needed for: {told}")
    which = ", ".join(dict.fromkeys([*wide, *writing]))
    return warning(
        f"no key needed for: {told}",
        why=f"{which}: anybody may {'reach every path' if wide else 'write'} there.",
        do="Take `public: true` away, or narrow the pattern and its methods, unless this is meant.",
    )


def probes(seen: Facts) -> Finding:
    """A platform's probes have no key."""
    public = [route for route in seen.config.routes if route.policy.public and _is_probe(route.pattern)]
    if seen.config.ops is not None:
        also = f"; public on the data listener: {', '.join(route.name for route in public)}" if public else ""
        return ok(f"/livez and /readyz at {seen.config.ops} need no key{also}")
    if public:
        return warning(
            f"only the upstream's own: {', '.join(route.name for route in public)}",
            why="They say how the upstream is; whether keys can be verified, only /readyz of the ops listener says.",
            do="Set `ops: 0.0.0.0:9090`, and let the probes of this container ask there.",
        )
    return warning(
        "nothing answers without a key: no ops listener, no public route for a health check",
        why="Probes without a key get 401, and the platform restarts the container or sends it nothing.",
        do="Set `ops: 0.0.0.0:9090` and probe /livez and /readyz there.",
    )


def _is_probe(pattern: str) -> bool:
    return pattern.rstrip("/").rpartition("/")[2].lower() in PROBES


def key_in_query(seen: Facts) -> Finding:
    names = [source.name for source in seen.config.keys.sources if source.kind == "query"]
    if not names:
        return ok("keys are taken from no query string")
    return warning(
        f"keys are taken from the query parameter {', '.join(names)}",
        why="Query strings stand in the logs of proxies, in browsers' histories and in Referer headers.",
        do="Let clients send a header; then take the entry out of keys.from.",
    )


def trusted_proxies(seen: Facts) -> Finding:
    """Who is believed when he says whose request this is."""
    networks = seen.config.trusted_proxies
    if not networks:
        return ok("none: a client's address is that of its socket")
    told = ", ".join(map(str, networks))
    if any(network.prefixlen == 0 for network in networks):
        return problem(
            told,
            why=f"Everybody is believed: any client chooses its own address in {seen.config.forwarded_header}, and so "
            "escapes quotas by address and the limit of wrong keys.",
            do="Name the addresses of the proxies in front, and nothing else.",
        )
    if any(network.prefixlen < _WIDE[network.version] for network in networks):
        return warning(
            told,
            why="Every host of so wide a network may choose the address that it is counted by.",
            do="Name the network of the proxies in front, and nothing wider.",
        )
    return ok(told)


def header_limits(seen: Facts) -> Finding:
    """What the proxy in front lets pass should pass here."""
    limits = seen.config.limits
    saw = f"request line {_kib(limits.request_line)}, head {_kib(limits.head)}, {limits.headers} headers"
    if not seen.config.trusted_proxies:
        return ok(saw)
    if limits.request_line < _NGINX_LINE or limits.header < _NGINX_LINE or limits.head < _NGINX_HEAD:
        return warning(
            f"{saw}, header {_kib(limits.header)}",
            why="Less than a proxy in front hands on by default (nginx: lines of 8 KiB, 32 KiB in all; Envoy: 60 KiB "
            "in all). Requests that it takes are refused here with 431.",
            do="Raise limits.request_line, limits.header and limits.head, or lower the proxy's own.",
        )
    if limits.head < _ENVOY_HEAD:
        return ok(f"{saw}: as nginx hands on by default; Envoy hands on up to 60 KiB")
    return ok(saw)


def ending(seen: Facts) -> Finding:
    """Whoever is killed before the drain is over cuts off requests."""
    drain = seen.config.drain
    needed = drain.delay + drain.timeout + _MARGIN
    saw = f"drain.delay {span(drain.delay)} + drain.timeout {span(drain.timeout)}"
    allowed = seen.grace_seconds
    assumed = allowed is None and (seen.host.in_kubernetes or needed > _KUBERNETES_GRACE)
    if needed <= (allowed or _KUBERNETES_GRACE):
        told = f", of {span(allowed)}" if allowed else ": more than Docker's 10 s, less than the 30 s of Kubernetes"
        return ok(saw + (told if allowed or needed > 10 + _MARGIN else ""))
    why = "The platform kills the process before its requests are finished, and clients see broken answers."
    do = f"Set terminationGracePeriodSeconds (systemd: TimeoutStopSec) to at least {needed:.0f}, or drain for less."
    if assumed:
        return warning(f"{saw}: more than the 30 s of Kubernetes' default", why=why, do=f"{do} Tell doctor by --grace.")
    return problem(f"{saw}: more than the {span(allowed or 0)} that the platform waits", why=why, do=do)


def limiter(seen: Facts) -> Finding:
    """Memory answers at once, and counts for one process alone."""
    if seen.config.limiter != "memory":
        return unchecked("only the limiter in memory can be looked at")
    counting = "counted in this process's memory; each replica counts for itself"
    return ok(counting if seen.config.quotas else "no quota is configured")


def _kib(size: int) -> str:
    return f"{size / 1024:g} KiB"
