"""The requirements of operations (`security`), expressed as options of a route: public, or scopes.

A document lists alternatives, each with several schemes and their scopes; a route requires any of some scopes, and all
of others. What a route cannot express becomes stricter, never wider.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from sidecar.config.errors import Place
from sidecar.core.model import Policy
from sidecar.core.patterns import Pattern

READING = frozenset({"GET", "HEAD", "OPTIONS", "QUERY"})
"""Safe methods (RFC 9110 section 9.2.1)."""
_NO_NAME = re.compile(r"[^!#-\[\]-~]+")
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A method and a path of a document, with its requirements."""

    method: str
    template: str
    pattern: Pattern
    place: Place
    tag: str = ""
    """Its first tag, or the first meaningful segment of its path."""
    operation_id: str = ""
    security: tuple[frozenset[str], ...] | None = None
    """Alternatives, each with the scopes of all its schemes, or none; None if the document does not say."""
    public: bool = False
    """Whether the document lets callers in without credentials: `security: []`, or an alternative of no scheme."""
    remarks: tuple[str, ...] = ()
    """How the pattern is wider or narrower than the template."""

    @property
    def name(self) -> str:
        return f"{self.method} {self.template}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """Requirements as a route has them: a key with any of some scopes and all of others, or no key."""

    public: bool = False
    any_scopes: frozenset[str] = frozenset()
    all_scopes: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()
    from_tag: bool = False
    """Whether the scopes come from the tag, because the document names none."""

    @property
    def policy(self) -> Policy:
        return Policy(public=self.public, any_scopes=self.any_scopes, all_scopes=self.all_scopes)

    @property
    def demands(self) -> tuple[bool, frozenset[str], frozenset[str]]:
        """Without remarks, to be compared."""
        return self.public, self.any_scopes, self.all_scopes


Source = tuple[str, str]
"""`scope` with the name of a scope in the document, or `read` or `write` with one of its tags."""
_Owner = TypeVar("_Owner")


class ScopeNames:
    """Maps a document's names to names of scopes. Two of its names never become one.

    declared: the scopes of its schemes, which keep their names if these are valid.
    """

    def __init__(self, declared: Iterable[str]) -> None:
        self._names: dict[Source, str] = {}
        self._taken: dict[str, Source] = {}
        self._slugs: dict[str, str] = {}
        ordered = sorted(set(declared), key=lambda name: (_scope_name(name) != name, name))
        for name in ordered:
            self.of_scheme(name)

    def of_scheme(self, name: str) -> str:
        """For a scope of a scheme."""
        return self._name(("scope", name), _scope_name(name))

    def of_tag(self, tag: str, method: str) -> str:
        """For operations that name no scope: `tag:read`, or `tag:write` for methods that change something."""
        slug = re.sub(r"[^a-z0-9._/-]+", "-", tag.lower()).strip("-.")[:_LONGEST_NAME] or "api"
        slug = _unused(slug, tag, self._slugs)
        action = "read" if method in READING else "write"
        return self._name((action, tag), f"{slug}:{action}")

    def source(self, made: str) -> Source:
        """What a name was made for."""
        return self._taken[made]

    def _name(self, source: Source, wanted: str) -> str:
        if source not in self._names:
            self._names[source] = _unused(wanted, source, self._taken)
        return self._names[source]


def _unused(wanted: str, owner: _Owner, taken: dict[str, _Owner]) -> str:
    """`wanted`, followed by a number if that name has another owner."""
    made, number = wanted, 2
    while taken.setdefault(made, owner) != owner:
        made, number = _numbered(wanted, number), number + 1
    return made


def _numbered(name: str, number: int) -> str:
    stem, colon, action = name.rpartition(":")
    return f"{stem}-{number}:{action}" if colon and action in ("read", "write") else f"{name}-{number}"


def _scope_name(name: str) -> str:
    """The nearest name that a catalogue allows (RFC 6750 section 3, and no wildcard)."""
    made = _NO_NAME.sub("_", name)[:_LONGEST_NAME] or "_"
    return f"{made[:-1]}all" if made == "*" or made.endswith(":*") else made


def requirement_of(operation: Operation, names: ScopeNames) -> Requirement:
    """The requirements of a route for `operation`."""
    if operation.public:
        return Requirement(public=True)
    alternatives = [frozenset(map(names.of_scheme, scopes)) for scopes in operation.security or () if scopes]
    if not alternatives:
        scope = names.of_tag(operation.tag, operation.method)
        return Requirement(any_scopes=frozenset({scope}), from_tag=True)
    return _of_alternatives(alternatives)


def _of_alternatives(alternatives: Sequence[frozenset[str]]) -> Requirement:
    """alternatives: sets of scopes, each of which is enough; none is empty."""
    fewest = [each for each in alternatives if not any(other < each for other in alternatives)]
    common = frozenset.intersection(*fewest)
    others = {each - common for each in fewest}
    if len(others) == 1 or all(len(each) == 1 for each in others):
        return _simplest(frozenset().union(*others), common)
    listed = " or ".join(sorted("+".join(sorted(each)) for each in fewest))
    remark = f"the document takes {listed}, which a route cannot express: it requires all of them"
    return Requirement(all_scopes=frozenset().union(*fewest), remarks=(remark,))


def _simplest(any_scopes: frozenset[str], all_scopes: frozenset[str]) -> Requirement:
    if not any_scopes and len(all_scopes) == 1:
        return Requirement(any_scopes=all_scopes)
    if len(any_scopes) == 1 and all_scopes:
        return Requirement(all_scopes=any_scopes | all_scopes)
    return Requirement(any_scopes=any_scopes, all_scopes=all_scopes)


def strictest(requirements: Sequence[Requirement]) -> Requirement:
    """Requirements that satisfy all operations, for requests that may belong to several of them."""
    first = requirements[0]
    if all(each.demands == first.demands for each in requirements):
        return first
    closed = [each for each in requirements if not each.public]
    choices = {each.any_scopes for each in closed if each.any_scopes}
    narrowest = frozenset.intersection(*choices) if choices else frozenset[str]()
    every = frozenset().union(*(each.all_scopes for each in closed))
    if choices and narrowest not in choices:
        # Two different choices are needed, but a route offers one: so require all scopes of both.
        narrowest, every = frozenset(), every | frozenset().union(*choices)
    remarks = tuple(dict.fromkeys(remark for each in closed for remark in each.remarks))
    made = _simplest(frozenset() if narrowest & every else narrowest, every)
    return replace(made, remarks=remarks, from_tag=any(each.from_tag for each in closed))


@dataclass(slots=True)
class Endpoint:
    """Operations that no route can distinguish: one method, and patterns that match the same paths."""

    method: str
    pattern: Pattern
    operations: list[Operation] = field(default_factory=list)

    def requirement(self, names: ScopeNames) -> Requirement:
        return strictest([requirement_of(operation, names) for operation in self.operations])


def endpoints_of(operations: Iterable[Operation]) -> list[Endpoint]:
    """In the order of the document."""
    found: dict[tuple[str, Pattern], Endpoint] = {}
    for operation in operations:
        key = (operation.method, operation.pattern.shape)
        endpoint = found.setdefault(key, Endpoint(operation.method, operation.pattern))
        endpoint.operations.append(operation)
    return list(found.values())
