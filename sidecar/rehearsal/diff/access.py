"""Who may pass a route, in a canonical form: policies with the same meaning are equal.

A policy's condition on scopes is a conjunction of clauses: the key must hold at least one scope of each clause. A
clause names all scopes that can be granted, including wildcards and scopes that include others, so that clauses of two
catalogues can be compared. The condition has one shortest form: clauses that are supersets of another clause are left
out.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sidecar.config.build.config import Config
from sidecar.config.build.modes import Modes
from sidecar.core.model import EVERY, Policy
from sidecar.core.policy import Catalogue
from sidecar.core.routing import Match

Clauses = frozenset[frozenset[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a key needs to pass."""

    clauses: Clauses = frozenset()
    tenants: frozenset[str] = frozenset()
    """The path parameter that must equal the key's tenant."""
    named_environments: frozenset[str] = frozenset()
    """The path parameter that must equal the key's environment."""
    environments: frozenset[str] | None = None
    """Environments whose keys are accepted; None accepts every one."""

    def and_also(self, other: "Terms") -> "Terms":
        both = [names for names in (self.environments, other.environments) if names is not None]
        return Terms(
            clauses=shortest(self.clauses | other.clauses),
            tenants=self.tenants | other.tenants,
            named_environments=self.named_environments | other.named_environments,
            environments=frozenset.intersection(*both) if both else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Which callers pass: without a credential, with a credential that is not a key, with a key. terms: None if no key
    passes.
    """

    anonymous: bool = False
    pass_through: bool = False
    terms: Terms | None = None

    def and_also(self, other: "Access") -> "Access":
        terms = None if self.terms is None or other.terms is None else self.terms.and_also(other.terms)
        return Access(
            anonymous=self.anonymous and other.anonymous,
            pass_through=self.pass_through and other.pass_through,
            terms=terms,
        )


CLOSED = Access()


class Grants:
    """Maps scopes that are granted to a key to the scopes of one configuration's catalogue.

    names: all scopes that may be granted, in either of the compared configurations. fresh: scopes that no key can hold
    yet; they count if a route names them, but not if they only include a scope that it names.
    """

    def __init__(self, config: Config, names: Iterable[str], fresh: frozenset[str] = frozenset()) -> None:
        self._passes, self._fresh = bool(config.keys.pass_through), fresh
        self._modes = Modes(config)
        self._granting: dict[str, set[str]] = {}
        for name in names:
            for scope in config.catalogue.expand([name]):
                self._granting.setdefault(scope, set()).add(name)

    def observed(self, match: Match | None) -> str:
        """Why requests without a key pass anyway, in words; empty if refusals are enforced."""
        return self._modes.because(self._modes.unmatched if match is None else match.route, None)

    def access(self, match: Match | None) -> Access:
        if match is None and self.observed(match):
            return Access(anonymous=True, pass_through=True, terms=Terms())
        if match is None or match.route.policy.deny:
            return CLOSED
        own = self._own(match, match.route.policy)
        return own if match.unslashed is None else own.and_also(self.access(match.unslashed))

    def _own(self, match: Match, policy: Policy) -> Access:
        terms = None if policy.refuses_keys is not None else Terms() if policy.public else self._terms(match, policy)
        anyone = policy.public or bool(self.observed(match))
        passes = anyone or (self._passes and policy.pass_through and policy.respond is None)
        return Access(anonymous=anyone, pass_through=passes, terms=terms)

    def _terms(self, match: Match, policy: Policy) -> Terms:
        wanted = [*([scope] for scope in policy.all_scopes), *([policy.any_scopes] if policy.any_scopes else [])]
        held = [
            scopes for scopes in wanted if not self._modes.because(match.route, None, self._modes.of_scopes(scopes))
        ]
        clauses = shortest(map(self._clause, held))
        if self.observed(match):
            return Terms(clauses=clauses)
        return Terms(
            clauses=clauses,
            tenants=frozenset([match.tenant or ""] if policy.tenant_param else []),
            named_environments=frozenset([match.environment or ""] if policy.environment_param else []),
            environments=policy.environments or None,
        )

    def _clause(self, scopes: Collection[str]) -> frozenset[str]:
        granting = frozenset(name for scope in scopes for name in self._granting.get(scope, ()))
        return granting - self._fresh.difference(scopes)


def grantable(*catalogues: Catalogue) -> frozenset[str]:
    """Every scope that a key may hold under one of them, wildcards included."""
    names = {name for catalogue in catalogues for name in catalogue.scopes}
    steps = {name[: place + 1] for name in names for place, char in enumerate(name) if char == ":"}
    return frozenset(names | {f"{step}{EVERY}" for step in steps} | {EVERY})


def shortest(clauses: Iterable[frozenset[str]]) -> Clauses:
    """Leaves out clauses that are supersets of another clause: a key that satisfies the smaller one satisfies them."""
    kept: list[frozenset[str]] = []
    for clause in sorted(set(clauses), key=len):
        if not any(other <= clause for other in kept):
            kept.append(clause)
    return frozenset(kept)


def alone(access: Access) -> frozenset[str]:
    """The scopes of which any one is enough, if any is needed."""
    clauses = access.terms.clauses if access.terms is not None else frozenset()
    return frozenset.intersection(*clauses) if clauses else frozenset()


def gained(old: Access, new: Access) -> list[str]:
    """Who passes under `new` but did not under `old`, in words."""
    return [*_gained_without_key(old, new), *_gained_by_keys(old.terms, new.terms)]


def _gained_without_key(old: Access, new: Access) -> Iterator[str]:
    if new.anonymous and not old.anonymous:
        yield "requests without a key"
    elif new.pass_through and not old.pass_through:
        yield "credentials that pass through"


def _gained_by_keys(old: Terms | None, new: Terms | None) -> Iterator[str]:
    if new is None:
        return
    if old is None:
        yield _keys_with(_enough(new.clauses, frozenset()))
        return
    for clause in sorted(old.clauses, key=sorted):
        if not any(other <= clause for other in new.clauses):
            yield _keys_with(_enough(new.clauses, clause), lacking=clause)
            break
    if not old.tenants <= new.tenants:
        yield "keys of another tenant than the path names"
    if not old.named_environments <= new.named_environments:
        yield "keys of another environment than the path names"
    if old.environments is not None and new.environments is None:
        yield f"keys of other environments than {', '.join(sorted(old.environments))}"
    elif old.environments is not None and new.environments is not None and new.environments - old.environments:
        yield f"keys of the environment {', '.join(sorted(new.environments - old.environments))}"


def _enough(clauses: Clauses, lacking: frozenset[str]) -> Sequence[str]:
    """Scopes that satisfy every clause without any of `lacking`; names are preferred to wildcards."""
    chosen: set[str] = set()
    for clause in sorted(clauses, key=sorted):
        if chosen.isdisjoint(clause):
            chosen.add(min(clause - lacking, key=lambda name: (name.endswith(EVERY), name)))
    return sorted(chosen)


def _keys_with(scopes: Sequence[str], lacking: frozenset[str] = frozenset()) -> str:
    if scopes:
        return f"keys with {' and '.join(scopes)}"
    without = sorted(name for name in lacking if not name.endswith(EVERY))
    return f"keys without {' or '.join(without)}" if without else "every key"
