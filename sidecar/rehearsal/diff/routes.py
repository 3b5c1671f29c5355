"""Compares the routes of two configurations: by looking requests up in both route tables, not by comparing texts.

Each reading of an ambiguous path is looked up separately; a replay says whether the readings agree.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sidecar.config.build.config import Config
from sidecar.core.errors import Denied
from sidecar.core.model import EVERY, Cors, Policy, Route
from sidecar.core.patterns import Pattern, parse_pattern, parts_of
from sidecar.core.routing import EVERYTHING, KNOWN_METHODS, NEVER_ROUTED, NO_ROUTE, Match
from sidecar.gate.compile import method_rules, route_table
from sidecar.gate.explain import charges, requirements
from sidecar.rehearsal.diff.access import CLOSED, Access, Grants, alone, gained, grantable
from sidecar.rehearsal.diff.changes import Change, Detail, Effect, effects, shown

_OTHERS: Final = "(other methods)"
_NOBODY: Final = "nobody may pass"


class _Side:
    """One of the two configurations, and how it treats requests."""

    def __init__(self, config: Config, names: Iterable[str], fresh: frozenset[str]) -> None:
        self.config = config
        self._table, self._methods = route_table(config), method_rules(config)
        self._grants = Grants(config, names, fresh)
        passing = config.unmatched.policy.pass_through
        self.routes: Sequence[Route] = (*config.routes, *([config.unmatched] if passing else ()))

    def match(self, method: str, path: str) -> Match | None:
        try:
            self._methods.check(method)
        except Denied:
            return None
        return self._table.match(method, path)

    def access(self, match: Match | None) -> Access:
        return self._grants.access(match)

    def in_words(self, match: Match | None) -> str:
        """Who may pass."""
        text = _in_words(match, self.access(match))
        observed = self._grants.observed(match)
        return f"everyone, {observed}" if observed else text


@dataclass(slots=True)
class _Group:
    """Requests that move from one route to another, with the same difference."""

    old: Match | None
    new: Match | None
    effects: frozenset[Effect]
    details: Sequence[Detail]
    methods: set[str] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)


def route_changes(old: Config, new: Config) -> Iterator[Change]:
    """Each route, or part of a route, whose requests are treated differently."""
    held, names = grantable(old.catalogue), grantable(old.catalogue, new.catalogue)
    before, after = (_Side(config, names, names - held) for config in (old, new))
    groups: dict[object, _Group] = {}
    asked = methods(before.routes, after.routes)
    for example in examples(before.routes, after.routes):
        for method in asked:
            pair = before.match(method, example.path), after.match(method, example.path)
            found = _compared(before, after, *pair)
            if found is None:
                continue
            key = (*map(_identity, pair), found.effects, tuple(found.details))
            group = groups.setdefault(key, found)
            group.methods.add(method)
            group.notes.add(example.note)
    for group in groups.values():
        yield _change(group, asked)


def _identity(match: Match | None) -> object:
    return None if match is None else id(match.route)


def _compared(before: _Side, after: _Side, old: Match | None, new: Match | None) -> _Group | None:
    """None if both configurations treat the request alike."""
    mine, theirs = before.access(old), after.access(new)
    won, lost = gained(mine, theirs), gained(theirs, mine)
    words = before.in_words(old), after.in_words(new)
    details = [*_passing(words, mine, theirs, won, lost)]
    if mine != CLOSED and theirs != CLOSED and old is not None and new is not None:
        details += _treatment(before.config, after.config, old.route, new.route)
    if not details:
        return None
    return _Group(old, new, effects(opens=bool(won), closes=bool(lost)), details)


def _opening(access: Access) -> str:
    """The scopes of which each one is enough, in words."""
    needed = access.terms is not None and bool(access.terms.clauses)
    return ", ".join(_names(alone(access))) or ("none alone" if needed else "none is needed")


def _passing(
    words: tuple[str, str], before: Access, after: Access, won: Sequence[str], lost: Sequence[str]
) -> Iterator[Detail]:
    """words: who may pass, before and after."""
    if before == after:
        return
    was, becomes = words
    if was != becomes:
        yield Detail("may pass", was, becomes)
    single, other = _opening(before), _opening(after)
    if was == becomes and single != other:
        yield Detail("scopes that open it", single, other)
    if won and before != CLOSED:
        yield Detail("now pass", after="; ".join(won))
    if lost and after != CLOSED:
        yield Detail("no longer pass", before="; ".join(lost))


def _names(scopes: Iterable[str]) -> list[str]:
    return sorted(name for name in scopes if not name.endswith(EVERY))


def _in_words(match: Match | None, access: Access) -> str:
    if match is None or access == CLOSED:
        return _NOBODY
    policy = match.route.policy
    text = "" if match.route.name == NO_ROUTE and not policy.public else requirements(policy)
    unslashed = "" if match.unslashed is None else requirements(match.unslashed.route.policy)
    text += f" (and, without the slash at the end, {unslashed})" if unslashed not in ("", text) else ""
    passing = "credentials that pass through" if access.pass_through and not access.anonymous else ""
    return "; or ".join(filter(None, (text, passing)))


# How allowed requests are treated.


def _treatment(old: Config, new: Config, before: Route, after: Route) -> Iterator[Detail]:
    mine, theirs = before.policy, after.policy
    if _charged(mine) != _charged(theirs):
        yield Detail("quotas", charges(mine) or "none", charges(theirs) or "none")
    if mine.respond != theirs.respond:
        yield Detail("response", _responder(mine), _responder(theirs))
    if mine.respond is None and theirs.respond is None:
        yield from _forwarding(old, new, mine, theirs)
    if mine.cors != theirs.cors:
        yield from _sharing(mine.cors, theirs.cors)
    if mine.shared_cache != theirs.shared_cache:
        yield Detail("cache", *("shared" if policy.shared_cache else "by key" for policy in (mine, theirs)))


def _charged(policy: Policy) -> dict[str, int]:
    return {charge.quota.name: charge.cost for charge in policy.charges}


def _responder(policy: Policy) -> str:
    return "the upstream's" if policy.respond is None else f"the sidecar's own, {policy.respond.status}"


def _forwarding(old: Config, new: Config, before: Policy, after: Policy) -> Iterator[Detail]:
    """Options that a route inherits from its upstream are reported as changes of the upstream."""
    mine, theirs = before.forward, after.forward
    one, other = old.every_upstream[mine.upstream], new.every_upstream[theirs.upstream]
    moved = mine.upstream != theirs.upstream
    if moved and one != other:
        yield Detail("upstream", mine.upstream or "the default one", theirs.upstream or "the default one")
    for name, own, own_new, inherited, inherited_new in (
        ("strip_prefix", mine.strip_prefix, theirs.strip_prefix, one.strip_prefix, other.strip_prefix),
        (
            "answer_timeout", mine.answer_timeout_seconds, theirs.answer_timeout_seconds,
            one.answer_timeout, other.answer_timeout,
        ),
        ("body", mine.body_bytes, theirs.body_bytes, old.limits.body, new.limits.body),
    ):  # fmt: skip
        values = inherited if own is None else own, inherited_new if own_new is None else own_new
        if values[0] != values[1] and not (own is None and own_new is None):
            yield Detail(name, *map(shown, values))


def _sharing(before: Cors | None, after: Cors | None) -> Iterator[Detail]:
    if before is None or after is None:
        yield Detail("cors", *("off" if cors is None else f"of {shown(cors.origins)}" for cors in (before, after)))
        return
    for name in ("origins", "headers", "expose", "credentials", "max_age_seconds"):
        mine, theirs = (getattr(cors, name) for cors in (before, after))
        if mine != theirs:
            yield Detail(f"cors.{name.removesuffix('_seconds')}", shown(mine), shown(theirs))


# A group as a change.


def _change(group: _Group, asked: Sequence[str]) -> Change:
    old, new = (None if match is None else match.route for match in (group.old, group.new))
    note = "" if "" in group.notes else f" ({', '.join(sorted(group.notes))})"
    return Change(
        section="routes",
        what=f"{_methods(group.methods, asked)} {_pattern(old, new)}{note}",
        kind="changed" if (old is None) == (new is None) else "added" if old is None else "removed",
        effects=group.effects,
        details=group.details,
        old="" if old is None else old.where,
        new="" if new is None else new.where,
    )


def _methods(found: set[str], asked: Sequence[str]) -> str:
    """The requests as a route would be written, if the group has all methods of the route."""
    if found.issuperset(asked):
        return EVERY
    named = sorted(found - {asked[-1]} - ({"HEAD"} if "GET" in found else set()))
    return "|".join([*named, *([_OTHERS] if asked[-1] in found else [])])


def _pattern(old: Route | None, new: Route | None) -> str:
    """The pattern of the paths that both routes match; that of the new route if both match the same paths."""
    if old is None or new is None:
        return next((route.pattern for route in (old, new) if route is not None), "of requests that match no route")
    mine, theirs = parse_pattern(old.pattern), parse_pattern(new.pattern)
    if theirs.within(mine):
        return new.pattern
    if mine.within(theirs):
        return old.pattern
    return " and ".join(map(str, mine.shared(theirs))) or new.pattern


_VALUE = "\0"
"""The prefix of values that occur in no pattern."""


class Example(NamedTuple):
    """A path, and what distinguishes it from other paths of its pattern."""

    path: str
    note: str = ""


def examples(old: Sequence[Route], new: Sequence[Route]) -> Iterator[Example]:
    """Paths of every kind that the routes distinguish. All values in a path differ, so that bindings can be
    distinguished.
    """
    patterns = _patterns(old, new)
    deepest = max(len(pattern.segments) for pattern in patterns)
    verbs = any(parts.has_verb for pattern in patterns for segment in pattern.segments if (parts := parts_of(segment)))
    for pattern in patterns:
        yield from _of_pattern(pattern, deepest + 1 - len(pattern.segments), verbs=verbs)


def methods(old: Sequence[Route], new: Sequence[Route]) -> tuple[str, ...]:
    """The methods that the routes name, and at the end one that represents all others."""
    named = {method for route in (*old, *new) for method in route.methods} - {EVERY} - NEVER_ROUTED
    others = sorted(KNOWN_METHODS - NEVER_ROUTED - named)
    return (*sorted(named), *others[-1:])


def _patterns(old: Sequence[Route], new: Sequence[Route]) -> Sequence[Pattern]:
    """Each pattern once, and the intersections of a pattern of only one side with a pattern of only the other."""
    before, after = _by_shape(old), _by_shape(new)
    everything = parse_pattern(EVERYTHING)
    found = {everything.shape: everything, **before, **after}
    gone = [pattern for shape, pattern in before.items() if shape not in after]
    come = [pattern for shape, pattern in after.items() if shape not in before]
    for one in gone:
        for other in come:
            for shared in one.shared(other):
                found.setdefault(shared.shape, shared)
    return list(found.values())


def _by_shape(routes: Iterable[Route]) -> dict[Pattern, Pattern]:
    return {pattern.shape: pattern for pattern in (parse_pattern(route.pattern) for route in routes)}


def _of_pattern(pattern: Pattern, depth: int, *, verbs: bool) -> Iterator[Example]:
    """depth: how many segments beyond the pattern's are distinguished. verbs: whether a colon may matter."""
    stem = _filled(pattern)
    for segments, note in ((stem, ""), *(_with_colons(pattern, stem) if verbs else ())):
        if not pattern.rest:
            yield Example("/" + "/".join(segments), note)
            continue
        for more in range(depth + 1):
            path = [*segments, *(f"{_VALUE}+{place}" for place in range(more))]
            if path:
                yield Example("/" + "/".join(path), note)
            yield Example("/" + "/".join([*path, ""]), note or "with a slash at its end")


def _filled(pattern: Pattern) -> list[str]:
    return [
        parts.fill(f"{_VALUE}{place}") if (parts := parts_of(segment)) else segment
        for place, segment in enumerate(pattern.segments)
    ]


def _with_colons(pattern: Pattern, stem: Sequence[str]) -> Iterator[tuple[Sequence[str], str]]:
    """The path with a colon in a parameter without fixed text, as for a verb that no route names."""
    for place, segment in enumerate(pattern.segments):
        parts = parts_of(segment)
        if parts is not None and not parts.prefix and not parts.suffix:
            values = [*stem[:place], f"{stem[place]}:{_VALUE}", *stem[place + 1 :]]
            yield values, f"with a colon in {segment}"
