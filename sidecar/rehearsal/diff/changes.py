"""One difference between two configurations, and whether it opens or closes anything."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Effect = Literal["opens", "closes"]

LONGEST: Final = 160
"""Characters of a value that are shown."""


class Detail(NamedTuple):
    """One difference; a side is empty if it does not have the option."""

    name: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A difference for one kind of requests, or in one named part of a section.

    effects: whether requests pass that did not, or no longer pass; empty if something else changes. old, new:
    `file:line`, empty if there is none.
    """

    section: str
    what: str
    kind: Literal["added", "removed", "changed"]
    effects: frozenset[Effect] = frozenset()
    details: Sequence[Detail] = ()
    old: str = ""
    new: str = ""

    @property
    def effect(self) -> Literal["opens", "closes", "opens and closes", "changes"]:
        if len(self.effects) == 2:
            return "opens and closes"
        return next(iter(self.effects), "changes")


def effects(*, opens: bool, closes: bool) -> frozenset[Effect]:
    found: Iterable[tuple[Effect, bool]] = (("opens", opens), ("closes", closes))
    return frozenset(name for name, holds in found if holds)


def shown(value: object) -> str:
    """A value of the configuration in one line, as it might be written."""
    match value:
        case None:
            text = "none"
        case bool():
            text = "true" if value else "false"
        case float() if value == int(value):
            text = str(int(value))
        case tuple() | list() | frozenset() | set():
            text = ", ".join(sorted(map(shown, value)) if isinstance(value, set | frozenset) else map(shown, value))
        case _:
            text = str(value)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
