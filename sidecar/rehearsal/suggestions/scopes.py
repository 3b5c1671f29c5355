"""The smallest set of scopes that some policies need, out of the scopes of a key. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from sidecar.core.model import Policy
from sidecar.core.policy import Catalogue, missing_scopes

MOST_STEPS: Final = 2_000
"""Most sets that are tried for one key before the best so far is used. Few keys need more than ten."""
_REMEMBERED: Final = 16_384
"""Results that are cached: most keys share a few pairs of granted scopes and needs."""

Needs = frozenset[tuple[frozenset[str], frozenset[str]]]
"""Pairs of `any_scopes` and `all_scopes`, one for each policy that must let the key pass."""


def needs_of(policies: Iterable[Policy]) -> Needs:
    """The scopes that the policies require; policies that require none are left out."""
    return frozenset(
        (policy.any_scopes, policy.all_scopes)
        for policy in policies
        if not policy.public and (policy.any_scopes or policy.all_scopes)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallestSet:
    """What a key needs: `names` to grant, and the scopes that they include."""

    names: tuple[str, ...]
    scopes: frozenset[str]
    exact: bool
    """Whether no smaller set exists. Otherwise one might, with at least `at_least` scopes."""
    at_least: int


class ScopeSets:
    """Finds the smallest sets under one catalogue.

    The size of a set is the number of scopes that it includes, since a scope that includes ten others is as wide as all
    of them. Ties are broken by the fewest opened `routes`, then the fewest names, then the most names that the key
    already has, then the alphabet.
    """

    def __init__(self, catalogue: Catalogue, routes: Iterable[Policy], *, most_steps: int = MOST_STEPS) -> None:
        self._most_steps = most_steps
        self._guarded = [policy for policy in routes if not policy.public and (policy.any_scopes or policy.all_scopes)]
        self._closure = {name: catalogue.expand([name]) for name in catalogue.scopes}
        self._expand = lru_cache(maxsize=_REMEMBERED)(catalogue.expand)
        self._opened = lru_cache(maxsize=_REMEMBERED)(self._count_opened)
        self._smallest = lru_cache(maxsize=_REMEMBERED)(self._find)

    def expand(self, held: Sequence[str]) -> frozenset[str]:
        """As Catalogue.expand, cached."""
        return self._expand(tuple(held))

    def smallest(self, held: Sequence[str], needs: Needs) -> SmallestSet | None:
        """The smallest set for `needs` out of the scopes that `held` includes; None if they are not enough."""
        return self._smallest(frozenset(held), self.expand(held), needs)

    def used(self, held: Sequence[str], scopes: frozenset[str]) -> tuple[str, ...]:
        """The names of `held` that include `scopes`: for each of these the narrowest one."""
        giving = (
            min((len(self.expand((name,))), name) for name in held if scope in self.expand((name,))) for scope in scopes
        )
        needed = {name for _, name in giving}
        return tuple(name for name in held if name in needed)

    def _find(self, held: frozenset[str], available: frozenset[str], needs: Needs) -> SmallestSet | None:
        wanted: set[str] = set().union(*(all_scopes for _, all_scopes in needs))
        choices = {any_scopes & available for any_scopes, _ in needs if any_scopes}
        if not wanted <= available or frozenset() in choices:
            return None
        start = self._closed(wanted)
        open_choices = _undominated(choice for choice in choices if choice.isdisjoint(start))
        search = _Search(self._closure, lambda scopes: self._rank(scopes, held), self._most_steps)
        best = search.best(start, open_choices)
        at_least = len(best) if search.complete else min(len(best), len(start) + _disjoint(open_choices))
        exact = search.complete or at_least == len(best)
        return SmallestSet(names=self._names(best, held), scopes=best, exact=exact, at_least=at_least)

    def _closed(self, names: Iterable[str]) -> frozenset[str]:
        return frozenset().union(*(self._closure[name] for name in names))

    def _rank(self, scopes: frozenset[str], held: frozenset[str]) -> tuple[object, ...]:
        names = self._names(scopes, held)
        return self._opened(scopes), len(names), sum(name not in held for name in names), names

    def _names(self, scopes: frozenset[str], held: frozenset[str]) -> tuple[str, ...]:
        """The fewest names that include exactly the closed set `scopes`."""
        found: list[str] = []
        for name in sorted(scopes, key=lambda name: (-len(self._closure[name]), name not in held, name)):
            if not any(name in self._closure[wider] for wider in found):
                found.append(name)
        return tuple(sorted(found))

    def _count_opened(self, scopes: frozenset[str]) -> int:
        return sum(not missing_scopes(policy, scopes) for policy in self._guarded)


def _undominated(choices: Iterable[frozenset[str]]) -> tuple[frozenset[str], ...]:
    """The choices without those that another one with fewer options implies; the narrowest first."""
    found: list[frozenset[str]] = []
    for choice in sorted(set(choices), key=lambda choice: (len(choice), sorted(choice))):
        if not any(narrower <= choice for narrower in found):
            found.append(choice)
    return tuple(found)


def _disjoint(choices: Iterable[frozenset[str]]) -> int:
    """How many of the choices have no option in common: each of these needs its own scope."""
    taken: set[str] = set()
    count = 0
    for choice in choices:
        if taken.isdisjoint(choice):
            taken |= choice
            count += 1
    return count


@dataclass(slots=True)
class _Search:
    """Branches over the options of one choice at a time, and abandons sets that are larger than the best so far.

    The smallest set contains an option of each choice with all its inclusions, so some branch leads to it.
    """

    closure: Mapping[str, frozenset[str]]
    rank: Callable[[frozenset[str]], tuple[object, ...]]
    """The rank among sets of one size: the smallest is the best."""
    steps_left: int
    complete: bool = True
    _best: frozenset[str] = field(default=frozenset())

    def best(self, start: frozenset[str], choices: Sequence[frozenset[str]]) -> frozenset[str]:
        self._best = self._greedy(start, choices)
        self._branch(start, choices)
        return self._best

    def _greedy(self, scopes: frozenset[str], choices: Sequence[frozenset[str]]) -> frozenset[str]:
        """Repeatedly takes the option that satisfies the most choices per added scope."""
        while choices:
            number = Counter(option for choice in choices for option in choice)
            scopes |= self.closure[max(sorted(number), key=lambda option: self._worth(option, scopes, number))]
            choices = [choice for choice in choices if choice.isdisjoint(scopes)]
        return scopes

    def _worth(self, option: str, scopes: frozenset[str], number: Mapping[str, int]) -> float:
        added = self.closure[option] - scopes
        return sum(number[scope] for scope in added if scope in number) / len(added)

    def _branch(self, scopes: frozenset[str], choices: Sequence[frozenset[str]]) -> None:
        if not choices:
            self._best = min(self._best, scopes, key=lambda found: (len(found), self.rank(found)))
            return
        for larger in self._larger(scopes, choices[0]):
            if self.steps_left <= 0:
                self.complete = False
                return
            self.steps_left -= 1
            if len(larger) <= len(self._best):
                self._branch(larger, [choice for choice in choices if choice.isdisjoint(larger)])

    def _larger(self, scopes: frozenset[str], choice: frozenset[str]) -> Iterator[frozenset[str]]:
        yield from sorted((scopes | self.closure[option] for option in sorted(choice)), key=len)
