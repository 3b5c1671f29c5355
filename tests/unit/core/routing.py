"""Routes for tests, and a slow, simple reference implementation."""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product

from sidecar.core.model import Policy, Route


def route(text: str, policy: Policy | None = None) -> Route:
    """`GET|POST /pattern`; GET implies HEAD."""
    methods, _, pattern = text.partition(" ")
    named = frozenset(methods.split("|"))
    return Route(
        name=text,
        methods=named | {"HEAD"} if "GET" in named else named,
        pattern=pattern,
        policy=policy or Policy(),
    )


def routes(*texts: str) -> list[Route]:
    return [route(text) for text in texts]


SEGMENTS = ("a", "b", "", "z")
FIXED = (*SEGMENTS, "ab", "az", "zb", "azb", "a:b", "z:b")
"""Segments that distinguish `a{x}`, `{x}b` and `{x}:b`."""
PATHS = tuple(
    "/" + "/".join(parts)
    for segments, most in ((SEGMENTS, 4), (FIXED, 3))
    for length in range(1, most + 1)
    for parts in product(segments, repeat=length)
    if segments is SEGMENTS or not set(parts) <= set(SEGMENTS)
)
METHODS = ("GET", "HEAD", "POST", "DELETE", "PURGE")
UNIVERSE = frozenset((method, path) for method in METHODS for path in PATHS)
"""Every request over a small alphabet: a literal that no pattern has among it, and paths longer than any pattern."""

_READ = frozenset({"GET", "HEAD"})


def requests_of(one: Route) -> frozenset[tuple[str, str]]:
    """The requests that a route matches, one by one."""
    methods = METHODS if "*" in one.methods else one.methods
    return frozenset(product(methods, paths_of(one.pattern)))


@cache
def paths_of(pattern: str) -> frozenset[str]:
    return frozenset(path for path in PATHS if matches_path(pattern, path))


def matches_path(pattern: str, path: str) -> bool:
    wanted, given = pattern.split("/")[1:], path.split("/")[1:]
    if wanted[-1] == "**":
        wanted.pop()
        if len(given) < len(wanted):
            return False
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(takes(want, have) for want, have in zip(wanted, given, strict=True))


def takes(want: str, have: str) -> bool:
    return value(want, have) != "" if "{" in want else want == have


def value(want: str, have: str) -> str:
    """What a segment's parameter stands for; empty where the segment does not take it."""
    before, _, rest = want.partition("{")
    after = rest.partition("}")[2]
    fits = have.startswith(before) and have[len(before) :].endswith(after)
    return have[len(before) :].removesuffix(after) if fits else ""


def opens_a_verb(pattern: str, path: str, table: Sequence[Route]) -> bool:
    """Whether a parameter stands for text with a colon, where a route of the table has a verb."""
    given = path.split("/")[1:]
    for depth, (want, have) in enumerate(zip(pattern.split("/")[1:], given, strict=False)):
        if "{" in want and ":" in value(want, have):
            for other in table:
                above, at = other.pattern.split("/")[1:][:depth], other.pattern.split("/")[1:][depth : depth + 1]
                if at and "}:" in at[0] and all(map(takes, above, given)):
                    return True
    return False


def methods_as_one(one: Route, method: str) -> frozenset[str]:
    """The methods that a route treats like this one; empty where it does not have it."""
    if "*" in one.methods:
        return frozenset(METHODS)
    if method in _READ and one.methods >= _READ:
        return _READ
    return one.methods & {method}


def conflict(one: Route, other: Route) -> bool:
    """Some request matches both, and neither has the narrower paths nor, for the same paths, fewer methods."""
    mine, theirs = paths_of(one.pattern), paths_of(other.pattern)
    shared = [m for m in METHODS if methods_as_one(one, m) and methods_as_one(other, m)]
    if mine == theirs:
        return any(methods_as_one(one, m) == methods_as_one(other, m) for m in shared)
    return bool(shared and mine & theirs) and not (mine < theirs or theirs < mine)


def most_specific(table: Sequence[Route], method: str, path: str) -> Route | None:
    """Tries every route."""
    fitting = [
        one
        for one in table
        if methods_as_one(one, method)
        and matches_path(one.pattern, path)
        and not opens_a_verb(one.pattern, path, table)
    ]
    found = min(fitting, key=lambda one: (len(paths_of(one.pattern)), len(methods_as_one(one, method))), default=None)
    assert all(found and paths_of(found.pattern) <= paths_of(one.pattern) for one in fitting)
    return found


def without_conflicts(table: Iterable[Route]) -> list[Route]:
    kept: list[Route] = []
    for one in table:
        if not any(conflict(one, other) for other in kept):
            kept.append(one)
    return kept
