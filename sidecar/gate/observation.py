"""Refusals that are only reported (`mode: observe`): which refusals of a request are, and where it is forwarded."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from sidecar.config.build.modes import Modes, Part
from sidecar.core.errors import Denied, Reason
from sidecar.core.model import ApiKey, Bucket, Principal, Quota, QuotaState, Route, Taken, WouldDeny
from sidecar.core.policy import authorize, missing_scopes
from sidecar.core.quotas import longest_refusal, untold
from sidecar.core.routing import Match

NO_VALID_KEY: Final = frozenset({Reason.MALFORMED_CREDENTIAL, Reason.INVALID_KEY, Reason.TOO_MANY_FAILURES})
"""Reasons for which the credential is not a key: such a request is forwarded without it, and without an identity."""
OBSERVABLE: Final = NO_VALID_KEY | {
    Reason.MISSING_CREDENTIAL,
    Reason.NO_ROUTE,
    Reason.INSUFFICIENT_SCOPE,
    Reason.WRONG_TENANT,
    Reason.WRONG_ENVIRONMENT,
    Reason.QUOTA_EXCEEDED,
}
"""All others are always enforced: malformed or ambiguous requests, faults, and disabled, revoked or expired keys."""


class Observation:
    """What is observed about one request. key: its valid key."""

    def __init__(self, modes: Modes, key: ApiKey | None) -> None:
        self._modes, self._key = modes, key
        self.first: WouldDeny | None = None
        """The refusal that the client would have got.

        It is the first one, unless too many wrong keys would have hidden it.
        """

    def check(
        self, reason: Reason, route: Route | None, parts: Sequence[Part] = (), quota: QuotaState | None = None
    ) -> None:
        """Raises Denied if a refusal for `reason` is enforced. route: None if none matches. quota: the one used up."""
        because = self._because(route, parts) if reason in OBSERVABLE else ""
        if not because:
            raise Denied(reason)
        if self.first is None or reason is Reason.TOO_MANY_FAILURES:
            self.first = WouldDeny(reason=reason, because=because, quota=quota)

    def authorize(self, matches: Sequence[Match | None], principal: Principal | None, *, foreign: bool) -> Match:
        """Where to forward the request. Raises Denied for an enforced refusal.

        matches: of every reading of the path. If readings differ, the request is never forwarded, even if all were
        refused alike: what is forwarded has one meaning.
        """
        first = matches[0]
        if any(match != first for match in matches):
            raise Denied(Reason.AMBIGUOUS_TARGET)
        return self._authorize(first, principal, foreign=foreign)

    def enforced(self, route: Route, buckets: Sequence[Bucket]) -> list[Bucket]:
        """The buckets whose quotas are enforced."""
        return [bucket for bucket in buckets if not self._because(route, [_part(bucket.quota)])]

    def used_up(self, route: Route, taken: Taken, held: Taken) -> Taken:
        """What is left if observed quotas are used up. taken: all buckets, refused. held: the enforced ones, taken.

        The count is reported without a time to wait, because nobody has to.
        """
        refused = [state for state in taken.states if state.retry_after_seconds]
        observed = [state for state in refused if self._because(route, [_part(state.quota)])]
        parts = [_part(state.quota) for state in observed]
        self.check(Reason.QUOTA_EXCEEDED, route, parts, longest_refusal(observed))
        left = {state.quota.name: state for state in held.states}
        states = (left.get(state.quota.name, untold(state)) for state in taken.states)
        return Taken(states=tuple(states))

    def told(self, route: Route | None, states: Sequence[QuotaState]) -> tuple[QuotaState, ...]:
        """What is left, without a time to wait if the quota is only observed, because nobody has to."""
        return tuple(untold(state) if self._because(route, [_part(state.quota)]) else state for state in states)

    def _because(self, route: Route | None, parts: Sequence[Part]) -> str:
        return self._modes.because(self._modes.unmatched if route is None else route, self._key, parts)

    def _authorize(self, match: Match | None, principal: Principal | None, *, foreign: bool) -> Match:
        if match is None:
            self.check(Reason.NO_ROUTE if principal else Reason.MISSING_CREDENTIAL, None)
            return Match(self._modes.unmatched)
        if match.unslashed is not None:
            self._authorize(match.unslashed, principal, foreign=foreign)
        relaxed = match._replace(unslashed=None)
        while True:
            try:
                authorize(relaxed, principal, foreign=foreign)
                return match
            except Denied as denied:
                self._check_match(denied.reason, match, principal)
                if principal is None:
                    return match
                relaxed, principal = _without(denied.reason, relaxed, principal)

    def _check_match(self, reason: Reason, match: Match, principal: Principal | None) -> None:
        policy = match.route.policy
        if reason is Reason.NO_ROUTE:  # Of a route: nobody may pass there, or none of our keys.
            raise Denied(reason)
        lacking = reason is Reason.INSUFFICIENT_SCOPE and principal is not None
        missing = missing_scopes(policy, principal.scopes) if lacking and principal is not None else ()
        self.check(reason, match.route, self._modes.of_scopes(missing))


def _part(quota: Quota) -> Part:
    return Part(f"quota {quota.name}", quota.mode)


def _without(reason: Reason, match: Match, principal: Principal) -> tuple[Match, Principal]:
    """The policy without the requirement behind `reason`: the route's other requirements must still be judged."""
    policy = match.route.policy
    match reason:
        case Reason.INSUFFICIENT_SCOPE:
            return match, replace(principal, scopes=principal.scopes | missing_scopes(policy, principal.scopes))
        case Reason.WRONG_TENANT:
            policy = replace(policy, tenant_param=None)
        case _:
            policy = replace(policy, environment_param=None, environments=frozenset())
    return match._replace(route=replace(match.route, policy=policy)), principal
