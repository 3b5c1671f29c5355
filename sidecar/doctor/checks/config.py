"""Checks of the configuration."""

from typing import Final

from sidecar.config.build.modes import in_one_line, observing
from sidecar.config.engines import LimiterSettings
from sidecar.doctor.facts import Facts, RunningFacts, Unknown
from sidecar.doctor.findings import Finding, ok, problem, span, unchecked, warning
from sidecar.limiter.redis.url import RedisUrl

PROBES: Final = frozenset(
    {"health", "healthz", "livez", "readyz", "live", "ready", "liveness", "readiness", "ping", "status", "up"}
)
"""Last path segments of health checks, which platforms call without a key."""
_NGINX_LINE: Final = 8 * 1024
_NGINX_HEAD: Final = 32 * 1024
_ENVOY_HEAD: Final = 60 * 1024
_KUBERNETES_GRACE: Final = 30.0
_MARGIN: Final = 2.0
_ASKED: Final = 'sidecar_limiter_breaker_state{state="closed"}'
_SAFE_METHODS: Final = {"GET", "HEAD", "OPTIONS"}
_MIN_PREFIX: Final = {4: 8, 6: 16}
"""IP version to the shortest prefix of a network that is not too wide."""


def changes(facts: Facts) -> Finding:
    """Whether a changed file reaches the sidecar. Kubernetes never updates a file that is mounted by itself."""
    if not facts.config.reload.watch:
        return ok("changes take effect on SIGHUP (reload.watch is off)")
    if not facts.files.config_alone:
        return ok(f"a change takes effect within {span(facts.config.reload.interval)}")
    return warning(
        f"{facts.config.path} is mounted as a single file (subPath)",
        why="Kubernetes never updates such a file, so changes to the ConfigMap have no effect.",
        do="Mount the ConfigMap as a folder, without subPath, and point -c to the file inside it.",
    )


def config_mode(facts: Facts) -> Finding:
    """Whether others may write the file, or read a secret in it."""
    file, secrets = facts.files.config, facts.files.literal_secrets
    if isinstance(file, Unknown):
        return unchecked(file.reason)
    saw = f"mode {file.mode:04o}"
    if file.mode & 0o002:
        return problem(
            f"{saw}: everyone can write it",
            why="Anyone who can write the configuration can open any route, or send all requests to another service.",
            do=f"chmod o-w {file.path}",
        )
    if secrets and file.mode & 0o044:
        return problem(
            f"{saw}, and it contains a secret (keys.imported: pepper, or the password in store)",
            why="Users other than the owner can read the file and the secret in it.",
            do="Write ${VARIABLE} instead and set that variable from a secret, or chmod 0600 the file.",
        )
    if file.mode & 0o020:
        return warning(
            f"{saw}: its group can write it",
            why="Anyone who can write the configuration can open any route.",
            do=f"chmod g-w {file.path}",
        )
    return ok(f"{saw}, contains no secret" if not secrets else f"{saw}, contains a secret")


def public_routes(facts: Facts) -> Finding:
    """Which routes need no key, and whether they are too wide."""
    every = (*facts.config.routes, facts.config.unmatched)
    routes = [route for route in every if route.policy.public]
    if not routes:
        return ok("none: every request needs a key")
    wide = [route.name for route in routes if route.pattern.strip("/*") == ""]
    writing = [route.name for route in routes if not route.methods <= _SAFE_METHODS]
    names = ", ".join(route.name for route in routes)
    if not wide and not writing:
        return ok(f"no key needed for: {names}")
    which = ", ".join(dict.fromkeys([*wide, *writing]))
    return warning(
        f"no key needed for: {names}",
        why=f"{which}: without a key, anyone can {'reach every path' if wide else 'change data'} there.",
        do="Remove `public: true`, or narrow the pattern and its methods, unless this is intended.",
    )


def probes(facts: Facts) -> Finding:
    """Whether a platform's probes, which have no key, get a response."""
    public = [route for route in facts.config.routes if route.policy.public and _is_probe(route.pattern)]
    if facts.config.ops is not None:
        also = f"; public on the data listener: {', '.join(route.name for route in public)}" if public else ""
        return ok(f"/livez and /readyz at {', '.join(map(str, facts.config.ops))} need no key{also}")
    if public:
        return warning(
            f"only health checks of the upstream: {', '.join(route.name for route in public)}",
            why="They show the upstream's state. Only /readyz of the ops listener shows whether keys can be verified.",
            do="Set `ops: 0.0.0.0:9090`, and point the probes of this container there.",
        )
    return warning(
        "every endpoint needs a key: there is no ops listener and no public route for a health check",
        why="Probes without a key get 401, so the platform restarts the container or sends it no traffic.",
        do="Set `ops: 0.0.0.0:9090` and probe /livez and /readyz there.",
    )


def _is_probe(pattern: str) -> bool:
    return pattern.rstrip("/").rpartition("/")[2].lower() in PROBES


def mode(facts: Facts) -> Finding:
    """Whether every refusal is enforced."""
    found = observing(facts.config)
    if not found:
        return ok("every decision is enforced")
    return warning(
        f"only observed, not enforced: {in_one_line(found)}",
        why="Requests that would be refused there reach the service all the same, those without a key included.",
        do="See sidecar_would_deny_total for whom it would refuse; then remove `mode: observe`.",
    )


def key_in_query(facts: Facts) -> Finding:
    """Whether clients may send keys in the query string."""
    names = [source.name for source in facts.config.keys.sources if source.kind == "query"]
    if not names:
        return ok("keys are not accepted in the query string")
    return warning(
        f"keys are accepted in the query parameter {', '.join(names)}",
        why="Query strings end up in proxy logs, browser histories and Referer headers.",
        do="Have clients send the key in a header; then remove the entry from keys.from.",
    )


def trusted_proxies(facts: Facts) -> Finding:
    """Which proxies may state the client's address."""
    networks = facts.config.trusted_proxies
    if not networks:
        return ok("none: a client's address is that of its connection")
    listed = ", ".join(map(str, networks))
    if any(network.prefixlen == 0 for network in networks):
        return problem(
            listed,
            why=f"Everyone is trusted: any client can choose its own address in {facts.config.forwarded_header} and "
            "so evade quotas by address and the limit on wrong keys.",
            do="List only the addresses of the proxies in front.",
        )
    if any(network.prefixlen < _MIN_PREFIX[network.version] for network in networks):
        return warning(
            listed,
            why="Every host in such a wide network can choose the client address that is counted.",
            do="List only the network of the proxies in front.",
        )
    return ok(listed)


def header_limits(facts: Facts) -> Finding:
    """Whether the sidecar accepts the heads that a proxy in front accepts."""
    limits = facts.config.limits
    saw = f"request line {_kib(limits.request_line)}, head {_kib(limits.head)}, {limits.headers} headers"
    if not facts.config.trusted_proxies:
        return ok(saw)
    if limits.request_line < _NGINX_LINE or limits.header < _NGINX_LINE or limits.head < _NGINX_HEAD:
        return warning(
            f"{saw}, header {_kib(limits.header)}",
            why="This is less than a proxy in front forwards by default (nginx: lines of 8 KiB, 32 KiB in all; Envoy: "
            "60 KiB in all). The sidecar refuses such requests with 431.",
            do="Raise limits.request_line, limits.header and limits.head, or lower the limits of the proxy.",
        )
    if limits.head < _ENVOY_HEAD:
        return ok(f"{saw}: enough for nginx's defaults; Envoy forwards up to 60 KiB")
    return ok(saw)


def drain(facts: Facts) -> Finding:
    """Whether the platform waits until the drain is finished."""
    settings = facts.config.drain
    needed = settings.delay + settings.timeout + _MARGIN
    saw = f"drain.delay {span(settings.delay)} + drain.timeout {span(settings.timeout)}"
    allowed = facts.grace_seconds
    assumed = allowed is None and (facts.host.in_kubernetes or needed > _KUBERNETES_GRACE)
    if needed <= (allowed or _KUBERNETES_GRACE):
        limit = f", of {span(allowed)}" if allowed else ": more than Docker's 10 s, less than Kubernetes' 30 s"
        return ok(saw + (limit if allowed or needed > 10 + _MARGIN else ""))
    why = "The platform kills the process before its requests are finished, and clients get truncated responses."
    do = f"Set terminationGracePeriodSeconds (systemd: TimeoutStopSec) to at least {needed:.0f}, or shorten the drain."
    if assumed:
        return warning(
            f"{saw}: more than Kubernetes' default of 30 s",
            why=why,
            do=f"{do} Pass the platform's value to doctor with --grace.",
        )
    return problem(f"{saw}: more than the {span(allowed or 0)} that the platform waits", why=why, do=do)


def limiter(facts: Facts) -> Finding:
    """Where quotas are counted."""
    settings, entries = facts.config.limiter, facts.config.limiter.entries
    if isinstance(settings.url, RedisUrl):
        return _shared_limiter(facts, settings, f"counted at {settings.url} as {settings.namespace}")
    counting = f"up to {entries:,} counts in this process's memory: each replica counts separately"
    return ok(counting if facts.config.quotas else "no quota is configured")


def _shared_limiter(facts: Facts, settings: LimiterSettings, saw: str) -> Finding:
    running = facts.running
    if isinstance(running, RunningFacts) and running.metrics.get(_ASKED) == 0:
        return problem(
            f"{saw}, but it cannot be asked now",
            why=f"Quotas are decided on as limiter.outage says: {settings.outage}.",
            do="See the cause in /readyz?verbose and in sidecar_limiter_errors_total.",
        )
    if settings.outage == "local" and settings.replicas == 1:
        return warning(
            f"{saw}; limiter.replicas is 1",
            why="While it cannot be asked, each sidecar that counts there lets the whole limit pass.",
            do="Set limiter.replicas to the number of sidecars that count together.",
        )
    return ok(f"{saw}; without it: {settings.outage}")


def _kib(size: int) -> str:
    return f"{size / 1024:g} KiB"
