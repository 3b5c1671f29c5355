"""Which rights keys do not need: from recorded use to suggestions. Pure."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sidecar.config.build.config import Config
from sidecar.core.model import ApiKey, Policy, Route
from sidecar.core.policy import missing_in_words, missing_scopes
from sidecar.core.units import counted, rfc3339
from sidecar.gate.compile import key_rules
from sidecar.keys.ports import KeyConflict
from sidecar.keys.transitions import KeyChange, with_change
from sidecar.keys.validation import InvalidKey
from sidecar.rehearsal.suggestions.scopes import MOST_STEPS, ScopeSets, SmallestSet, needs_of
from sidecar.rehearsal.suggestions.use import KeyUse, Use, passes, policies_of

FEWEST_REQUESTS: Final = 20
"""With fewer requests on record, it means little that a key did not use something."""
FAR_ABOVE: Final = 0.1
"""A quota is far above a key's use if the key never used more than this share."""
OFTEN_HIT: Final = 0.1
"""A quota is hit often if it refuses this share of a key's requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the recorded use covers. Times in microseconds."""

    since: int
    until: int
    complete: bool = True
    """Whether the record is complete, which a sample is not."""
    with_public: bool = True
    """Whether requests without a key are on record."""
    with_last_use: bool = True
    """Whether it is known when a key was last used."""
    fewest_requests: int = FEWEST_REQUESTS


Verdict = Literal["narrow", "fits", "too_early", "unused", "undecided"]
"""A smaller set of scopes is enough; none is; too little is on record; the key was not used; unknown.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Requests of a key that were refused for lack of scopes. Whether it should have them is for people to decide."""

    route: str
    lacks: tuple[str, ...]
    """What the route requires and the key lacks."""
    missing: str
    """The same in words: whether all of them are required, or any."""
    count: int
    observed: int = 0
    """Requests that were forwarded because the refusal was only observed (`mode: observe`); not in `count`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaFit:
    """A quota that is far above a key's use, or that refuses it often."""

    quota: str
    fit: Literal["far_above", "often_hit"]
    limit: int | None
    """None if several keys share it."""
    most: int
    """The peak use in one period (far above), or the number of refused requests (often hit)."""
    requests: int
    """The key's requests on routes that count the quota."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySuggestion:
    """What is suggested for one key, and why."""

    key: ApiKey
    verdict: Verdict
    why: str
    """Empty if the verdict says it all."""
    requests: int
    changed: int
    """Requests that passed then, but would not pass under the current configuration."""
    holds: int = 0
    """How many scopes those of the key include."""
    used: tuple[str, ...] = ()
    """The scopes of the key that its requests needed."""
    unused: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    """The smallest set of scopes that lets all recorded requests pass; to be granted if the verdict is `narrow`."""
    smallest: bool = True
    """Whether it is certain that no smaller set exists."""
    at_least: int = 0
    """How many scopes every sufficient set has, at least."""
    refused: tuple[Refused, ...] = ()
    quotas: tuple[QuotaFit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleRoute:
    """A route on which no request passed."""

    route: Route
    refused: int
    observed: int = 0
    """Requests that were forwarded only because their refusal was observed."""


class Suggestions:
    """Judges recorded use by one configuration. now: microseconds."""

    def __init__(self, config: Config, record: Record, *, now: int, most_steps: int = MOST_STEPS) -> None:
        policies = [route.policy for route in config.routes]
        self.sets = ScopeSets(config.catalogue, policies, most_steps=most_steps)
        self.record = record
        self._config, self._now, self._rules = config, now, key_rules(config)
        self._routes: Mapping[str, Route] = {route.name: route for route in config.routes}

    def of_key(self, key: ApiKey, use: KeyUse) -> KeySuggestion:
        """The suggestion for a key. `use` was judged with its current scopes."""
        needs = needs_of(policy for reading in use.readings.values() for policy in policies_of(reading))
        found = self.sets.smallest(key.scopes, needs)
        verdict, why = self._judge(key, use, found)
        used = self.sets.used(key.scopes, found.scopes) if found else key.scopes
        return KeySuggestion(
            key=key,
            verdict=verdict,
            why=why,
            requests=use.requests,
            changed=use.changed,
            holds=len(self.sets.expand(key.scopes)),
            used=used,
            unused=tuple(name for name in key.scopes if name not in used),
            needed=found.names if found else (),
            smallest=found is not None and found.exact,
            at_least=found.at_least if found else 0,
            refused=tuple(self._refused(key, use)),
            quotas=tuple(self._quotas(key, use)) if verdict in ("narrow", "fits") else (),
        )

    def idle_routes(self, use: Use) -> Iterator[IdleRoute]:
        """Routes on which no request passed. Routes that accept requests without a key only if these are on record."""
        for route in self._config.routes:
            if use.routes[route.name] or route.policy.deny or not self.record.complete:
                continue
            if self.record.with_public or not (route.policy.public or self._lets_pass(route.policy)):
                refused, observed = use.refused[route.name], use.observed[route.name]
                yield IdleRoute(route=route, refused=refused, observed=observed)

    def _lets_pass(self, policy: Policy) -> bool:
        return policy.pass_through and bool(self._config.keys.pass_through)

    def _judge(self, key: ApiKey, use: KeyUse, found: SmallestSet | None) -> tuple[Verdict, str]:
        early = self._too_early(key, use)
        if early is not None:
            return "too_early", early
        if use.requests == 0:
            return self._without_use(key, use)
        if found is None or not all(passes(reading, key, found.scopes) for reading in use.readings.values()):
            return "undecided", "no set of its scopes lets all recorded requests pass"
        if found.scopes == self.sets.expand(key.scopes) and set(key.scopes) <= self._config.catalogue.scopes.keys():
            return "fits", ""
        if not self.record.complete:
            return "undecided", "the record is not complete: what is missing in it may have happened"
        if (barred := self._barred(key, found.names)) is not None:
            return "undecided", f"it needs less, but may not be changed so: {barred}"
        return "narrow", ""

    def _too_early(self, key: ApiKey, use: KeyUse) -> str | None:
        if key.created_at > self.record.since:
            return f"issued {rfc3339(key.created_at)[:10]}, after the record begins"
        if 0 < use.requests < self.record.fewest_requests:
            return f"only {counted(use.requests, 'request')} on record"
        return None

    def _without_use(self, key: ApiKey, use: KeyUse) -> tuple[Verdict, str]:
        if use.changed:
            return "undecided", "all that it did would be refused today"
        if use.observed:
            return "undecided", "all that it did would have been refused"
        if not self.record.with_last_use:
            return ("unused", "not on record") if self.record.complete else ("undecided", "nothing of it is on record")
        if key.last_used_at is None:
            return "unused", "never used"
        if key.last_used_at < self.record.since:
            return "unused", f"last used {rfc3339(key.last_used_at)[:10]}"
        return "undecided", f"last used {rfc3339(key.last_used_at)[:10]}, of which there is no record"

    def _barred(self, key: ApiKey, names: Sequence[str]) -> str | None:
        """Why the key may not have these scopes, if it may not."""
        try:
            with_change(key, KeyChange(scopes=tuple(names)), self._rules, self._now)
        except InvalidKey as error:
            return "; ".join(error.problems)
        except KeyConflict as error:
            return str(error)
        return None

    def _refused(self, key: ApiKey, use: KeyUse) -> Iterator[Refused]:
        """The requests that would still be refused."""
        for name in sorted({*use.lacking, *use.observed}):
            route = self._routes.get(name)
            held = self.sets.expand(key.scopes)
            if route is not None and (lacks := missing_scopes(route.policy, held)):
                yield Refused(
                    route=name,
                    lacks=tuple(sorted(lacks)),
                    missing=missing_in_words(route.policy, held),
                    count=use.lacking.get(name, 0),
                    observed=use.observed.get(name, 0),
                )

    def _quotas(self, key: ApiKey, use: KeyUse) -> Iterator[QuotaFit]:
        often = self._often_hit(use)
        for name, (over, requests) in sorted(often.items()):
            peak = use.peaks.get(name)
            limit = peak.limit if peak else None
            yield QuotaFit(quota=name, fit="often_hit", limit=limit, most=over, requests=requests)
        if not self.record.complete:
            return
        for name, peak in sorted(use.peaks.items()):
            if name not in often and peak.limit is not None and peak.most < peak.limit * FAR_ABOVE:
                requests = self._counted_by(name, use.by_route)
                yield QuotaFit(quota=name, fit="far_above", limit=peak.limit, most=peak.most, requests=requests)

    def _often_hit(self, use: KeyUse) -> Mapping[str, tuple[int, int]]:
        """Quotas that refuse many requests, with how many and of how many."""
        names = {*use.used_up, *(name for route in use.over_quota for name in self._quotas_of(route))}
        shares = {
            name: (
                use.used_up.get(name, 0) + self._counted_by(name, use.over_quota),
                self._counted_by(name, use.by_route),
            )
            for name in names
        }
        return {name: (over, requests) for name, (over, requests) in shares.items() if over >= requests * OFTEN_HIT}

    def _counted_by(self, quota: str, by_route: Mapping[str, int]) -> int:
        return sum(count for route, count in by_route.items() if quota in self._quotas_of(route))

    def _quotas_of(self, route: str) -> Sequence[str]:
        found = self._routes.get(route)
        return [charge.quota.name for charge in found.policy.charges] if found else []


def change_command(key_id: str, scopes: Sequence[str], options: Sequence[str] = ()) -> str:
    """`sidecar keys change ID --scope …`, as a shell takes it."""
    words = [word for name in scopes for word in ("--scope", name)] or ["--no-scopes"]
    return shlex.join(["sidecar", "keys", "change", *options, key_id, *words])
