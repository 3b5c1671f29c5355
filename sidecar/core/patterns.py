"""Path patterns: literal segments, segments with one parameter, and `**` for the rest (possibly empty).

A parameter matches one or more characters of its segment, with or without fixed text around it: `{id}`,
`{id}:cancel`, `{name}.json`, `prefix-{x}`. Patterns are compared by the paths that they match; names do not matter.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

_LITERAL = re.compile(r"[A-Za-z0-9\-._~!$&'()+,=:@]+")
_PARAM = re.compile(r"([^{}]*)\{([A-Za-z_][A-Za-z0-9_]*)\}([^{}]*)")
_MOST_PIECES = 16
"""Limit of shared patterns: two patterns can share many combinations of segments, more than anyone has routes."""


class Parts(NamedTuple):
    """A segment with a parameter: the text before it, its name, and the text after it."""

    prefix: str
    name: str
    suffix: str

    def takes(self, text: str) -> bool:
        fixed = len(self.prefix) + len(self.suffix)
        return len(text) > fixed and text.startswith(self.prefix) and text.endswith(self.suffix)

    def fill(self, value: str) -> str:
        return f"{self.prefix}{value}{self.suffix}"

    def value(self, text: str) -> str:
        """The parameter's value in a segment that this one matches."""
        return text[len(self.prefix) : len(text) - len(self.suffix)]

    @property
    def has_verb(self) -> bool:
        """Whether a verb follows, as in `{id}:cancel`."""
        return self.suffix.startswith(":")


@lru_cache(maxsize=4096)
def parts_of(segment: str) -> Parts | None:
    """None for a literal."""
    found = _PARAM.fullmatch(segment)
    return Parts(*found.groups()) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Segments in order, as written: `v1`, `{id}`, `{id}:cancel`. `rest` is whether `**` follows."""

    segments: tuple[str, ...]
    rest: bool

    @property
    def params(self) -> tuple[str, ...]:
        return tuple(parts.name for segment in self.segments if (parts := parts_of(segment)))

    @property
    def shape(self) -> "Pattern":
        """The pattern without the names of its parameters: equal if two patterns match the same paths."""
        return Pattern(segments=tuple(map(_nameless, self.segments)), rest=self.rest)

    def lower(self) -> "Pattern":
        """The pattern with its fixed text in lower case, for paths whose case does not matter."""
        return Pattern(segments=tuple(map(_lower, self.segments)), rest=self.rest)

    def example(self, value: str) -> tuple[str, ...]:
        """The segments with `value` for each parameter."""
        return tuple(parts.fill(value) if (parts := parts_of(segment)) else segment for segment in self.segments)

    def within(self, other: "Pattern") -> bool:
        """Whether `other` matches every path of this pattern."""
        if len(self.segments) < len(other.segments):
            return False
        if not all(_within(mine, theirs) for mine, theirs in zip(self.segments, other.segments, strict=False)):
            return False
        return other.rest or (len(self.segments) == len(other.segments) and not self.rest)

    def meets(self, other: "Pattern") -> bool:
        """Whether both match some path."""
        shorter, longer = (self, other) if len(self.segments) <= len(other.segments) else (other, self)
        if len(shorter.segments) < len(longer.segments) and not shorter.rest:
            return False
        return all(map(_shared, shorter.segments, longer.segments))

    def shared(self, other: "Pattern") -> tuple["Pattern", ...]:
        """The patterns that together match exactly what both match; nearly always one."""
        if not self.meets(other):
            return ()
        shorter, longer = sorted((self, other), key=lambda pattern: len(pattern.segments))
        same_length = len(shorter.segments) == len(longer.segments)
        pieces = [_shared(mine, theirs) for mine, theirs in zip(shorter.segments, longer.segments, strict=False)]
        pieces += [(segment,) for segment in longer.segments[len(shorter.segments) :]]
        rest = longer.rest and (shorter.rest or not same_length)
        every = zip(range(_MOST_PIECES), product(*pieces), strict=False)
        return tuple(Pattern(segments=_distinct(segments), rest=rest) for _, segments in every)

    def __str__(self) -> str:
        return "/" + "/".join([*self.segments, *(["**"] if self.rest else [])])


def parse_pattern(text: str) -> Pattern:
    """Raises ValueError with what is wrong and what to write instead."""
    if not text.startswith("/"):
        raise ValueError(f"a pattern begins with '/': write '/{text}'")
    segments = text[1:].split("/")
    rest = segments[-1] == "**"
    if rest:
        segments.pop()
    for position, segment in enumerate(segments):
        if segment or position < len(segments) - 1 or rest:
            _check_segment(segment)
    pattern = Pattern(segments=tuple(segments), rest=rest)
    if len(set(pattern.params)) < len(pattern.params):
        raise ValueError("a parameter stands twice in one pattern")
    return pattern


def _check_segment(segment: str) -> None:
    if segment == "":
        raise ValueError("'//' can never match: merge the slashes")
    if segment == "**":
        raise ValueError("'**' stands for the rest of the path: nothing may follow it")
    if "*" in segment:
        raise ValueError(f"'{segment}': '*' cannot be part of a segment; use {{name}} for one segment, ** for the rest")
    parts = parts_of(segment)
    if parts is None and ("{" in segment or "}" in segment):
        raise ValueError(
            f"'{segment}': a segment has at most one parameter, such as {{name}}, {{name}}.json or {{id}}:cancel"
        )
    fixed = segment if parts is None else parts.prefix + parts.suffix
    if segment in (".", "..") or (fixed and not _LITERAL.fullmatch(fixed)):
        raise ValueError(
            f"'{segment}' can never match: write the segment as clients send it, without % ; ? # or dots alone"
        )


def _nameless(segment: str) -> str:
    parts = parts_of(segment)
    return parts.fill("{}") if parts else segment


def _lower(segment: str) -> str:
    parts = parts_of(segment)
    return f"{parts.prefix.lower()}{{{parts.name}}}{parts.suffix.lower()}" if parts else segment.lower()


def _within(mine: str, theirs: str) -> bool:
    own, other = parts_of(mine), parts_of(theirs)
    if other is None:
        return mine == theirs
    if own is None:
        return other.takes(mine)
    return own.prefix.startswith(other.prefix) and own.suffix.endswith(other.suffix)


@lru_cache(maxsize=4096)
def _shared(one: str, other: str) -> tuple[str, ...]:
    """The segments that together match exactly what both match."""
    mine, theirs = parts_of(one), parts_of(other)
    if mine is None or theirs is None:
        literal, wider = (one, theirs) if mine is None else (other, mine)
        return (literal,) if (wider.takes(literal) if wider else one == other) else ()
    prefix, suffix = max(mine.prefix, theirs.prefix, key=len), max(mine.suffix, theirs.suffix, key=len)
    if not (prefix.startswith(mine.prefix) and prefix.startswith(theirs.prefix)):
        return ()
    if not (suffix.endswith(mine.suffix) and suffix.endswith(theirs.suffix)):
        return ()
    name = (mine if mine.prefix + mine.suffix else theirs).name
    return (f"{prefix}{{{name}}}{suffix}", *_touching(prefix, suffix, mine, theirs))


def _touching(prefix: str, suffix: str, mine: Parts, theirs: Parts) -> Iterator[str]:
    """Literals that begin and end as both require, with nothing in between: `a{x}` and `{x}b` both match `ab`."""
    for common in range(min(len(prefix), len(suffix)) + 1):
        text = prefix + suffix[common:]
        if prefix.endswith(suffix[:common]) and mine.takes(text) and theirs.takes(text) and text not in (".", ".."):
            yield text


def _distinct(segments: tuple[str, ...]) -> tuple[str, ...]:
    """The segments, with a parameter renamed if an earlier one has its name."""
    names, renamed = set[str](), []
    for segment in segments:
        parts = parts_of(segment)
        name = parts.name if parts else ""
        while parts and name in names:
            name += "2"
        names.add(name)
        renamed.append(parts.fill(f"{{{name}}}") if parts else segment)
    return tuple(renamed)
