"""Requests that stand for all of their kind: for every pattern of two configurations, some that it alone takes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sidecar.core.model import EVERY, Route
from sidecar.core.patterns import Pattern, parse_pattern, parts_of
from sidecar.core.routing import EVERYTHING, KNOWN_METHODS, NEVER_ROUTED

_VALUE = "\0"
"""What a value begins with that no pattern has."""


class Example(NamedTuple):
    """A path, and what sets it apart from others of its pattern."""

    path: str
    note: str = ""


def examples(old: Sequence[Route], new: Sequence[Route]) -> Iterator[Example]:
    """Paths of every kind that the routes tell apart. Each value in one is another, so that bindings can be told."""
    patterns = _patterns(old, new)
    deepest = max(len(pattern.segments) for pattern in patterns)
    verbs = any(parts.has_verb for pattern in patterns for segment in pattern.segments if (parts := parts_of(segment)))
    for pattern in patterns:
        yield from _of_pattern(pattern, deepest + 1 - len(pattern.segments), verbs=verbs)


def methods(old: Sequence[Route], new: Sequence[Route]) -> tuple[str, ...]:
    """Those that the routes name, and one that stands for all others; the last one."""
    named = {method for route in (*old, *new) for method in route.methods} - {EVERY} - NEVER_ROUTED
    others = sorted(KNOWN_METHODS - NEVER_ROUTED - named)
    return (*sorted(named), *others[-1:])


def _patterns(old: Sequence[Route], new: Sequence[Route]) -> Sequence[Pattern]:
    """Each once, and what a pattern of only one side shares with one of only the other."""
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
    """depth: how many segments more than the pattern's are told apart. verbs: whether a colon may count."""
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
    """With a colon in one of the parameters that have no fixed text, for a verb that no route names."""
    for place, segment in enumerate(pattern.segments):
        parts = parts_of(segment)
        if parts is not None and not parts.prefix and not parts.suffix:
            values = [*stem[:place], f"{stem[place]}:{_VALUE}", *stem[place + 1 :]]
            yield values, f"with a colon in {segment}"
