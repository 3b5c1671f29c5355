"""The newest refusals, to find out why a key is refused. In memory only, and never with a key's secret."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from sidecar.core.errors import Reason, UpstreamCause
from sidecar.core.model import ApiKey, Decision, Deny, QuotaState, RequestHead
from sidecar.core.policy import missing_scopes
from sidecar.core.routing import NO_ROUTE
from sidecar.telemetry.redaction import Redaction

KEPT: Final = 200
"""Most refusals that are kept; older ones are dropped."""
_QUOTAS: Final = 1_000
"""Most exhausted quotas that are remembered."""
_PATH_CHARS: Final = 200
_TARGET_CHARS: Final = 2_048
"""Most characters of a request-target until it is redacted, so that clients cannot fill memory."""


class Refusal(Struct, frozen=True, kw_only=True, gc=False):
    """A request that was refused, or not served because of a fault. Empty: unknown; malformed ones have no method."""

    at: int
    """Microseconds."""
    request_id: str = ""
    """Clients choose it, so several requests may have the same one."""
    status: int
    reason: Reason
    cause: UpstreamCause | None
    """What was wrong with the upstream, if it failed."""
    route: str
    method: str = ""
    path: str = ""
    """Without query and keys, and truncated if `is_cut`."""
    is_cut: bool = False
    address: str = ""
    key_id: str = ""
    """Id of the recognised key, even if it is not valid; likewise `prefix`, its stored prefix."""
    prefix: str = ""
    tenant: str | None = None
    environment: str | None = None
    plan: str | None = None
    scopes: tuple[str, ...] = ()
    """As stored on the key."""
    missing: tuple[str, ...] = ()
    """Scopes that the route required and the key lacked."""
    pass_through: bool = False
    """Whether a credential was presented that is not a key."""
    quota: str = ""
    """The exhausted quota; with its `limit`, and the seconds to wait."""
    limit: int = 0
    retry_after: int = 0
    quotas: tuple[str, ...] = ()
    """What was left of each quota of the route, as text."""
    config: str = ""
    """The beginning of the hash of the configuration in force."""
    observed: bool = False
    """Whether it passed anyway (`mode: observe`); then `status` is that of its actual response."""


class RefusalFilter(Struct, frozen=True, kw_only=True):
    """Which refusals; None is any."""

    request_id: str | None = None
    key_id: str | None = None
    reason: str | None = None
    route: str | None = None
    since: int = 0
    """Microseconds, as is `until`, which is exclusive."""
    until: int | None = None
    limit: int = KEPT

    def fits(self, refusal: Refusal) -> bool:
        if refusal.at < self.since or (self.until is not None and refusal.at >= self.until):
            return False
        wanted = (
            (self.request_id, refusal.request_id),
            (self.key_id, refusal.key_id),
            (self.reason, refusal.reason),
            (self.route, refusal.route),
        )
        return all(value is None or value == found for value, found in wanted)


class Gathered(Struct, frozen=True, kw_only=True, gc=False):
    """What one process recorded since the last call, for another process, in the form of `Refusals`."""

    newest: tuple[Refusal, ...]
    """The newest last."""
    upstream_failure: Refusal | None
    used_up: dict[tuple[str, str], QuotaState]


_Fresh = tuple[float, str, str, str, Decision | None, int, Reason, UpstreamCause | None, str | None, bool, str]
"""Unix seconds, method, target, the socket's other end, and the rest as in Refusal.

Then the configuration, whether it was observed, and the request's id where there was no decision.
"""


def _no_config() -> None:
    return None


class Refusals:
    """Records what is at hand when a request is refused; `settle`, called every few seconds, makes it readable."""

    def __init__(self, redaction: Redaction, *, config: Callable[[], str | None] = _no_config) -> None:
        """config: the beginning of the hash of the configuration in force."""
        self._redaction, self._config = redaction, config
        self._fresh: deque[_Fresh] = deque(maxlen=KEPT)
        self._settled: deque[Refusal] = deque(maxlen=KEPT)
        self._fresh_failure: _Fresh | None = None
        self._upstream_failure: Refusal | None = None
        self._used_up: dict[tuple[str, str], QuotaState] = {}

    def add(
        self,
        head: RequestHead,
        decision: Decision | None,
        status: int,
        now: float,
        *,
        reason: Reason,
        cause: UpstreamCause | None,
        observed: bool = False,
        request_id: str = "",
    ) -> None:
        """A request was refused, or not served, at `now` (Unix seconds); `observed`: it went on anyway.

        request_id: where there was no decision.
        """
        # A slice as long as the text is the text itself.
        target = head.target[:_TARGET_CHARS]
        config = self._config()
        fresh = (now, head.method, target, head.peer, decision, status, reason, cause, config, observed, request_id)
        self._fresh.append(fresh)
        if cause is not None:
            self._fresh_failure = fresh

    def malformed(self, peer: str, status: int, now: float, *, reason: Reason, request_id: str = "") -> None:
        """Bytes from `peer` that never became a request were refused."""
        self._fresh.append((now, "", "", peer, None, status, reason, None, self._config(), False, request_id))

    def used_up(self, key_id: str, state: QuotaState) -> None:
        """A quota has refused a request with this key."""
        name = key_id, state.quota.name
        self._used_up.pop(name, None)
        self._used_up[name] = state
        if len(self._used_up) > _QUOTAS:
            del self._used_up[next(iter(self._used_up))]

    def refusing(self, now: float) -> Mapping[tuple[str, str], QuotaState]:
        """Quotas that refused a key and are not restored at `now`, by key id and quota, the newest last."""
        return {name: state for name, state in self._used_up.items() if state.resets_at > now}

    def gathered(self) -> Gathered:
        """Hand over everything, and forget it here."""
        self._settle()
        gathered = Gathered(
            newest=tuple(self._settled), upstream_failure=self._upstream_failure, used_up=dict(self._used_up)
        )
        self._settled.clear()
        self._used_up.clear()
        self._upstream_failure = None
        return gathered

    def merge(self, other: Gathered) -> None:
        """Add what another process recorded."""
        self._settle()
        self._settled = deque(sorted([*self._settled, *other.newest], key=lambda each: each.at), maxlen=KEPT)
        failures = [each for each in (self._upstream_failure, other.upstream_failure) if each is not None]
        self._upstream_failure = max(failures, key=lambda each: each.at, default=None)
        for (key_id, _), state in other.used_up.items():
            self.used_up(key_id, state)

    async def settle(self) -> None:
        """Release heads and decisions: paths lose their queries and keys."""
        self._settle()

    def newest(self) -> Sequence[Refusal]:
        """The newest first."""
        self._settle()
        return tuple(reversed(self._settled))

    def upstream_failure(self) -> Refusal | None:
        """The newest failure of the upstream. A flood of refusals does not evict it."""
        self._settle()
        return self._upstream_failure

    def _settle(self) -> None:
        fresh, self._fresh = self._fresh, deque(maxlen=KEPT)
        self._settled.extend(map(self._readable, fresh))
        if self._fresh_failure is not None:
            self._upstream_failure, self._fresh_failure = self._readable(self._fresh_failure), None

    def _readable(self, fresh: _Fresh) -> Refusal:
        now, method, target, peer, decision, status, reason, cause, config, observed, request_id = fresh
        key = _key_of(decision)
        route = decision.route if decision is not None else None
        quota = _used_up(decision, reason, observed=observed)
        path = self._redaction.path(target, longest=_PATH_CHARS + 1)
        return Refusal(
            at=int(now * 1_000_000),
            request_id=self._redaction.text(
                request_id if decision is None else decision.request_id, longest=_PATH_CHARS
            ),
            status=status,
            reason=reason,
            cause=cause,
            route=NO_ROUTE if route is None else route.name,
            method=self._redaction.text(method, longest=_PATH_CHARS),
            path=path[:_PATH_CHARS],
            is_cut=len(path) > _PATH_CHARS,
            address=peer if decision is None else decision.client_address,
            key_id="" if key is None else key.id,
            prefix="" if key is None else key.prefix,
            tenant=None if key is None else key.tenant,
            environment=None if key is None else key.environment,
            plan=None if key is None else key.plan,
            scopes=() if key is None else key.scopes,
            missing=_missing(decision, reason),
            pass_through=decision is not None and decision.pass_through,
            quota="" if quota is None else quota.quota.name,
            limit=0 if quota is None else quota.limit,
            retry_after=0 if quota is None else quota.retry_after_seconds,
            quotas=() if decision is None or key is None else tuple(map(_left, decision.quota_states)),
            config=config or "",
            observed=observed,
        )


def _used_up(decision: Decision | None, reason: Reason, *, observed: bool) -> QuotaState | None:
    if reason is not Reason.QUOTA_EXCEEDED:
        return None
    if isinstance(decision, Deny):
        return decision.refused_quota
    return decision.would_deny.quota if observed and decision is not None and decision.would_deny is not None else None


def _left(state: QuotaState) -> str:
    return f"{state.quota.name}: {state.remaining} of {state.limit} left"


def _missing(decision: Decision | None, reason: Reason) -> tuple[str, ...]:
    if decision is None or decision.route is None or decision.principal is None:
        return ()
    if reason is not Reason.INSUFFICIENT_SCOPE:
        return ()
    return tuple(sorted(missing_scopes(decision.route.policy, decision.principal.scopes)))


def _key_of(decision: Decision | None) -> ApiKey | None:
    if decision is None:
        return None
    if isinstance(decision, Deny):
        return decision.key
    return decision.principal.key if decision.principal is not None else None
