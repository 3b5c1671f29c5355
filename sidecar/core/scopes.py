"""The scope catalogue: which scopes exist, and what each includes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sidecar.core.model import EVERY


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A permission string as the catalogue describes it."""

    name: str
    description: str = ""
    includes: tuple[str, ...] = ()


class Catalogue:
    """Scopes by name, with their inclusions resolved once.

    `*` stands for every scope of the catalogue, and `videos:*` for every one that begins with `videos:`;
    both hold for scopes that are added later.
    """

    def __init__(self, scopes: Iterable[Scope] = ()) -> None:
        self.scopes: Mapping[str, Scope] = {scope.name: scope for scope in scopes}
        self._closure = {name: self._close(name) for name in self.scopes}

    def expand(self, granted: Iterable[str]) -> frozenset[str]:
        """Every scope that `granted` amounts to. A name that the catalogue lost grants nothing."""
        expanded: set[str] = set()
        for name in granted:
            for known in self._matching(name):
                expanded |= self._closure[known]
        return frozenset(expanded)

    def unknown(self, granted: Iterable[str]) -> list[str]:
        """The names in `granted` that stand for nothing here; `*` always stands for something."""
        return [name for name in granted if name != EVERY and not self._matching(name)]

    def _matching(self, name: str) -> list[str]:
        if name in self.scopes:
            return [name]
        if name == EVERY:
            return list(self.scopes)
        if name.endswith(":*"):
            return [known for known in self.scopes if known.startswith(name[:-1])]
        return []

    def _close(self, name: str) -> frozenset[str]:
        seen: set[str] = set()
        pending = [name]
        while pending:
            current = pending.pop()
            if current not in seen and current in self.scopes:
                seen.add(current)
                pending += [found for included in self.scopes[current].includes for found in self._matching(included)]
        return frozenset(seen)
