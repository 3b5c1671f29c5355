"""Scopes, what each includes, and whether a principal fulfils a route's policy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from sidecar.core.errors import Denied, Reason, status_of
from sidecar.core.model import EVERY, ApiKey, KeyStatus, Mode, Policy, Principal
from sidecar.core.routing import Match


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A permission string as the catalogue describes it."""

    name: str
    description: str = ""
    includes: tuple[str, ...] = ()
    mode: Mode | None = None


class Catalogue:
    """Scopes by name, with their inclusions resolved once.

    `*` means every scope of the catalogue, and `videos:*` every one that begins with `videos:`; both include scopes
    that are added later.
    """

    def __init__(self, scopes: Iterable[Scope] = ()) -> None:
        self.scopes: Mapping[str, Scope] = {scope.name: scope for scope in scopes}
        self._closure = {name: self._close(name) for name in self.scopes}

    def expand(self, granted: Iterable[str]) -> frozenset[str]:
        """Every scope that `granted` includes. A name that is no longer in the catalogue grants nothing."""
        expanded: set[str] = set()
        for name in granted:
            for known in self._matching(name):
                expanded |= self._closure[known]
        return frozenset(expanded)

    def unknown(self, granted: Iterable[str]) -> list[str]:
        """The names in `granted` that mean nothing here; `*` always means something."""
        return [name for name in granted if name != EVERY and not self._matching(name)]

    def _matching(self, name: str) -> list[str]:
        if name in self.scopes:
            return [name]
        if name == EVERY:
            return list(self.scopes)
        if name.endswith(":*"):
            return [known for known in self.scopes if known.startswith(name[:-1])]
        return []

    def _close(self, name: str) -> frozenset[str]:
        seen: set[str] = set()
        pending = [name]
        while pending:
            current = pending.pop()
            if current not in seen and current in self.scopes:
                seen.add(current)
                pending += [found for included in self.scopes[current].includes for found in self._matching(included)]
        return frozenset(seen)


_REASONS = {KeyStatus.REVOKED: Reason.REVOKED_KEY, KeyStatus.DISABLED: Reason.DISABLED_KEY}


DENIED = Policy(deny=True, all_scopes=frozenset({""}), pass_through=False)
"""A hole in a wider route: its requests are refused like unmatched ones."""


def check_status(key: ApiKey, now_us: int) -> None:
    """Raises Denied unless the key is active at `now_us` (microseconds)."""
    if key.status is not KeyStatus.ACTIVE:
        raise Denied(_REASONS[key.status])
    if key.expires_at is not None and key.expires_at <= now_us:
        raise Denied(Reason.EXPIRED_KEY)
    if key.retires_at is not None and key.retires_at <= now_us:
        raise Denied(Reason.RETIRED_KEY)


def valid_until(key: ApiKey) -> float:
    """Microseconds until which `check_status` lets the key pass."""
    if key.status is not KeyStatus.ACTIVE:
        return -inf
    return min((at for at in (key.expires_at, key.retires_at) if at is not None), default=inf)


def same_rights(key: ApiKey, other: ApiKey) -> bool:
    """Whether every policy treats both alike, apart from their status and times."""
    return (key.scopes, key.tenant, key.environment) == (other.scopes, other.tenant, other.environment)


def authorize(match: Match | None, principal: Principal | None, *, foreign: bool) -> Match:
    """The match, if the policy lets the caller pass. Raises Denied.

    foreign: whether the request carries a credential that is not ours and may pass to the upstream.
    """
    if match is None:
        raise Denied(Reason.NO_ROUTE if principal else Reason.MISSING_CREDENTIAL)
    if match.unslashed is not None:
        authorize(match.unslashed, principal, foreign=foreign)
    policy = match.route.policy
    if principal is not None and policy.refuses_keys is not None:
        raise Denied(policy.refuses_keys)
    if policy.public:
        return match
    if principal is None:
        if foreign and policy.pass_through and policy.respond is None:
            return match
        raise Denied(Reason.INVALID_KEY if foreign and not policy.deny else Reason.MISSING_CREDENTIAL)
    if missing_scopes(policy, principal.scopes):
        raise Denied(Reason.NO_ROUTE if policy.deny else Reason.INSUFFICIENT_SCOPE)
    _check_bindings(match, principal.key)
    return match


def authorize_all_readings(matches: Sequence[Match | None], principal: Principal | None, *, foreign: bool) -> Match:
    """The decision on which all readings of the path agree. Raises Denied.

    Readings that would all be refused with one status are refused with it; any other disagreement is ambiguous.
    """
    first = matches[0]
    if len(matches) == 1 or all(match == first for match in matches):
        return authorize(first, principal, foreign=foreign)
    outcomes = [_refusal(match, principal, foreign) for match in matches]
    statuses = {outcome and status_of(outcome) for outcome in outcomes}
    if outcomes[0] is None or len(statuses) > 1:
        raise Denied(Reason.AMBIGUOUS_TARGET)
    raise Denied(outcomes[0])


def _refusal(match: Match | None, principal: Principal | None, foreign: bool) -> Reason | None:
    try:
        authorize(match, principal, foreign=foreign)
    except Denied as denied:
        return denied.reason
    return None


def missing_scopes(policy: Policy, scopes: frozenset[str]) -> frozenset[str]:
    """What the policy requires and `scopes` lacks: of `all_scopes`, and, if none is held, any of `any_scopes`."""
    missing = policy.all_scopes - scopes
    if policy.any_scopes and policy.any_scopes.isdisjoint(scopes):
        missing |= policy.any_scopes
    return missing


def missing_in_words(policy: Policy, scopes: frozenset[str]) -> str:
    """As `missing_scopes`, as text: `a and b or c`, where any of the last ones is enough."""
    lacking = sorted(policy.all_scopes - scopes)
    either = sorted(policy.any_scopes) if policy.any_scopes.isdisjoint(scopes) else []
    return " and ".join([*lacking, *([" or ".join(either)] if either else [])])


def takes_environment(policy: Policy, key: ApiKey) -> bool:
    """Whether the route accepts keys of this environment at all, whatever the path."""
    return not policy.environments or key.environment == EVERY or key.environment in policy.environments


def _check_bindings(match: Match, key: ApiKey) -> None:
    policy = match.route.policy
    if policy.tenant_param and key.tenant not in (EVERY, match.tenant):
        raise Denied(Reason.WRONG_TENANT)
    if policy.environment_param and key.environment not in (EVERY, match.environment):
        raise Denied(Reason.WRONG_ENVIRONMENT)
    if policy.environments and not takes_environment(policy, key):
        raise Denied(Reason.WRONG_ENVIRONMENT)
