"""Routes for tests, and what they mean said again in the slowest and plainest way."""

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
PATHS = tuple("/" + "/".join(parts) for length in range(1, 5) for parts in product(SEGMENTS, repeat=length))
METHODS = ("GET", "HEAD", "POST", "DELETE", "PURGE")
UNIVERSE = frozenset((method, path) for method in METHODS for path in PATHS)
"""Every request over a small alphabet: a literal that no pattern has among it, and paths longer than any pattern."""


def requests_of(one: Route) -> frozenset[tuple[str, str]]:
    """The requests that a route matches, one by one."""
    methods = METHODS if "*" in one.methods else one.methods
    return frozenset(product(methods, paths_of(one.pattern)))


def matches(one: Route, method: str, path: str) -> bool:
    return (method in one.methods or "*" in one.methods) and matches_path(one.pattern, path)


@cache
def paths_of(pattern: str) -> tuple[str, ...]:
    return tuple(path for path in PATHS if matches_path(pattern, path))


def matches_path(pattern: str, path: str) -> bool:
    wanted, given = pattern.split("/")[1:], path.split("/")[1:]
    if wanted[-1] == "**":
        wanted.pop()
        if len(given) < len(wanted):
            return False
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(
        want == have or (want.startswith("{") and have != "") for want, have in zip(wanted, given, strict=True)
    )


def conflict(one: Route, other: Route) -> bool:
    """Go 1.22: some request matches both, and neither route's requests are all the other's."""
    mine, theirs = requests_of(one), requests_of(other)
    return bool(mine & theirs) and (mine == theirs or not (mine < theirs or theirs < mine))


def most_specific(table: Sequence[Route], method: str, path: str) -> Route | None:
    fitting = [one for one in table if matches(one, method, path)]
    return min(fitting, key=lambda one: len(requests_of(one)), default=None)


def without_conflicts(table: Iterable[Route]) -> list[Route]:
    kept: list[Route] = []
    for one in table:
        if not any(conflict(one, other) for other in kept):
            kept.append(one)
    return kept
