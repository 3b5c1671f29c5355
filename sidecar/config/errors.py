"""What is wrong with a configuration, and where. A report collects all problems before it raises."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from sidecar.core.apikey import without_keys

T = TypeVar("T")

Path = tuple[str | int, ...]
"""The steps to a value: `("routes", 2, "scopes", 0)`."""

_LONGEST_NAME = 80


class Place(NamedTuple):
    """Line and column, counted from 1. Line 0: not in a file; `file` is then the name of the option or variable."""

    file: str
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem. As text it is one line, whatever characters the file contains."""

    file: str
    line: int
    column: int
    path: str
    message: str

    @property
    def where(self) -> str:
        """`file:line:column`."""
        return _printable(f"{self.file}:{self.line}:{self.column}" if self.line else self.file)

    @property
    def text(self) -> str:
        """What is wrong, without its place."""
        path = f"{self.path}: " if self.path and self.line else ""
        return _printable(path + self.message)

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class ConfigError(Exception):
    """The configuration cannot be used. `problems` contains all problems, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Report:
    """Records the place of each value, and collects problems."""

    def __init__(self, root: Place) -> None:
        self._places: dict[Path, tuple[Place, Place]] = {(): (root, root)}
        self._names: dict[Path, dict[str, None]] = {}
        self._kept: dict[Path, tuple[int, ...]] = {}
        self._found: list[tuple[Place, Path, str]] = []
        self._doubts: list[tuple[Place, Path, str]] = []
        self._notes: list[tuple[Place, Path, str]] = []

    def place(self, path: Path, key: Place, value: Place) -> None:
        """Records the places of the key and the value at `path` (an item of a list has no key: its own place twice)."""
        self._places[path] = (key, value)
        self._names.setdefault(path[:-1], {})[str(path[-1])] = None

    def keep(self, path: Path, positions: Iterable[int]) -> None:
        """Records which items of the list at `path` could be decoded."""
        self._kept[path] = tuple(positions)

    def numbered(self, path: Path, items: Sequence[T]) -> Iterator[tuple[Path, T]]:
        """The items of the list at `path` that could be decoded, each with its path in the file."""
        positions = self._kept.get(path, range(len(items)))
        return (((*path, position), item) for position, item in zip(positions, items, strict=True))

    def one_or_numbered(self, path: Path, items: Sequence[T]) -> Iterator[tuple[Path, T]]:
        """As `numbered`; a single item that is written without a list is at `path` itself."""
        return self.numbered(path, items) if path in self._kept else ((path, item) for item in items)

    def problem(self, path: Path, message: str) -> None:
        """Reports the value at `path`; a missing one at the mapping that should contain it."""
        self._found.append((self._nearest(path)[1], path, message))

    def key_problem(self, path: Path, message: str, place: Place | None = None) -> None:
        """Reports the key at `path`. place: if another key than the recorded one of `path` is wrong."""
        self._found.append((place or self._nearest(path)[0], path, message))

    def doubt(self, path: Path, message: str) -> None:
        """Warns about the key at `path`: it is valid, but probably a mistake."""
        self._doubts.append((self._nearest(path)[0], path, f"warning: {message}"))

    def note(self, path: Path, message: str) -> None:
        """Says what the key at `path` does not do as things stand here: it may be otherwise where the sidecar runs."""
        self._notes.append((self._nearest(path)[0], path, f"note: {message}"))

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """In the order of the file."""
        return tuple(_in_order(self._doubts))

    @property
    def notes(self) -> tuple[Problem, ...]:
        """In the order of the file."""
        return tuple(_in_order(self._notes))

    def names(self, path: Path) -> tuple[str, ...]:
        """The keys of the mapping at `path`, including those with a wrong value."""
        return tuple(self._names.get(path, ()))

    def sound(self, path: Path) -> bool:
        """Whether nothing is wrong at `path` or below."""
        return all(found[: len(path)] != path for _, found, _ in self._found)

    def where(self, path: Path) -> str:
        """`file:line` of the key at `path`."""
        place = self._nearest(path)[0]
        return f"{place.file}:{place.line}"

    def close(self) -> None:
        """Raises ConfigError if there was any problem."""
        if self._found:
            raise ConfigError(_in_order(self._found))

    def _nearest(self, path: Path) -> tuple[Place, Place]:
        while path not in self._places:
            path = path[:-1]
        return self._places[path]


def _in_order(found: Iterable[tuple[Place, Path, str]]) -> Iterator[Problem]:
    for place, path, message in sorted(found, key=lambda each: each[0][1:]):
        yield Problem(file=place.file, line=place.line, column=place.column, path=render(path), message=message)


def unreadable(place: Place, message: str) -> ConfigError:
    """The error for a file that cannot be parsed at all."""
    shown = without_keys(message)
    return ConfigError([Problem(file=place.file, line=place.line, column=place.column, path="", message=shown)])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or empty if no known name is close."""
    lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f" (did you mean '{lower[close[0]]}'?)" if close else ""


def render(path: Path) -> str:
    """`routes[2].scopes[0]`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{_short(step)}" for step in path)
    return "".join(steps).removeprefix(".")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
