"""How a configuration decides on a recorded request: the gate's own steps, with the rights in the log.

It does not judge what the log lacks, or what is not part of the policy: headers and bodies, wrong keys, quotas.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sidecar.config.build.config import Config
from sidecar.config.build.modes import Modes, observing
from sidecar.core.errors import Denied, Reason
from sidecar.core.model import ApiKey, Principal
from sidecar.core.policy import authorize_all_readings
from sidecar.core.routing import Match
from sidecar.core.target import Target, parse_target, readings
from sidecar.gate.compile import credential_rules, header_rules, injection, method_rules, route_table, trusted_proxies
from sidecar.gate.observation import OBSERVABLE, Observation
from sidecar.rehearsal.recorded import RecordedRequest

_MOST_KNOWN: Final = 20_000
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]+)", re.IGNORECASE)


class Outcome(NamedTuple):
    """reason: why the request is refused; None if it passes. route: its name; None if none matches.

    would_deny: the reason of a refusal that is only observed, so that the request passes.
    """

    reason: Reason | None
    route: str | None
    would_deny: Reason | None = None


def parsed(path: str) -> Target | Reason:
    """The parsed target, or the reason for which every configuration refuses it."""
    try:
        return parse_target(path, _host(path))
    except Denied as denied:
        return denied.reason


def _host(path: str) -> str:
    """The host of a target in absolute form, which the gate compared with `Host`; empty for other targets."""
    found = None if path.startswith("/") else _ABSOLUTE.match(path)
    return "" if found is None else found[1]


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """A caller under one configuration. Compared by identity.

    foreign: whether the request has a credential that is not a key. Its place is not recorded: any place that
    `keys.pass_through` names is assumed. wrong_key: the reason why its key is not valid (NO_VALID_KEY).
    """

    principal: Principal | None
    foreign: bool = False
    wrong_key: Reason | None = None


class Judge:
    """Judges requests under one configuration. Its memory is bounded."""

    def __init__(self, config: Config) -> None:
        self._catalogue, self._keep_slash = config.catalogue, config.keep_slash
        self._table, self._methods = route_table(config), method_rules(config)
        self._injection = injection(config, header_rules(config, credential_rules(config)), trusted_proxies(config))
        self._passes = bool(config.keys.pass_through)
        self._modes = Modes(config) if observing(config) else None
        self.observes = self._modes is not None
        """Whether any refusal is only observed."""
        rules = [route.policy.forward for route in (*config.routes, config.unmatched)]
        self._prefixed = any(any(self._injection.prefixes(each)) for each in rules)
        self._known: dict[tuple[int, str | None, str | None, Caller], Outcome] = {}

    def principal(self, request: RecordedRequest) -> Principal | None:
        """The key of the recorded request, under this configuration. None without a key."""
        if request.key_id is None:
            return None
        key = ApiKey(
            id=request.key_id, name="", prefix=request.key_prefix or "", digest=b"", algorithm="", created_at=0,
            created_by="", scopes=request.scopes, tenant=request.tenant, environment=request.environment,
        )  # fmt: skip
        return Principal(key=key, scopes=self._catalogue.expand(key.scopes))

    def judge(self, method: str, target: Target | Reason, caller: Caller) -> Outcome:
        """Decides as `Gate.decide` does, except for quotas."""
        try:
            self._methods.check(method)
        except Denied as denied:
            return Outcome(denied.reason, None)
        if isinstance(target, Reason):
            return Outcome(target, None)
        if not target.ordinary or self._prefixed:
            return self._judge_readings(method, target, caller)
        match = self._table.match(method, target.path)
        if match is None or match.unslashed is not None:
            return self._judge_readings(method, target, caller)
        # Nothing else affects the decision. A log has many paths that occur once, but few of these.
        key = id(match.route), match.tenant, match.environment, caller
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            found = self._known[key] = self._judge_readings(method, target, caller)
        return found

    def _judge_readings(self, method: str, target: Target, caller: Caller) -> Outcome:
        route = None
        try:
            paths = (target.path,) if target.ordinary else readings(target.path, keep_slash=self._keep_slash)
            matches = [self._table.match(method, path) for path in paths]
            route = matches[0].route if matches[0] else None
            match, seen = self._authorized(matches, caller)
            if self._prefixed:
                self._injection.target(target, paths, None, None, match.route.policy.forward)
        except Denied as denied:
            return Outcome(denied.reason, None if route is None else route.name)
        return Outcome(None, match.route.name, seen)

    def _authorized(self, matches: Sequence[Match | None], caller: Caller) -> tuple[Match, Reason | None]:
        """The route on which the request is forwarded, and why it would be refused if the refusal were enforced."""
        principal, foreign = caller.principal, caller.foreign and self._passes
        try:
            if caller.wrong_key is not None:
                raise Denied(caller.wrong_key)
            return authorize_all_readings(matches, principal, foreign=foreign), None
        except Denied as denied:
            if self._modes is None or denied.reason not in OBSERVABLE or any(match != matches[0] for match in matches):
                raise
        seen = Observation(self._modes, None if principal is None else principal.key)
        if caller.wrong_key is not None:
            seen.check(caller.wrong_key, None if matches[0] is None else matches[0].route)
        match = seen.authorize(matches, principal, foreign=foreign)
        return match, None if seen.first is None else seen.first.reason
