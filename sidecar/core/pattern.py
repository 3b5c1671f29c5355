"""Path patterns: literal segments, `{name}` for one segment, `**` for the rest (also nothing)."""

import re
from dataclasses import dataclass

_LITERAL = re.compile(r"[A-Za-z0-9\-._~!$&'()+,=:@]+")
_PARAM = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Segments in order; a parameter is `{name}`. `rest` is whether `**` follows."""

    segments: tuple[str, ...]
    rest: bool

    @property
    def params(self) -> tuple[str, ...]:
        return tuple(segment[1:-1] for segment in self.segments if is_param(segment))

    def lower(self) -> "Pattern":
        """The pattern with its literals in lower case, for paths whose case does not matter."""
        folded = tuple(segment if is_param(segment) else segment.lower() for segment in self.segments)
        return Pattern(segments=folded, rest=self.rest)

    def within(self, other: "Pattern") -> bool:
        """Whether every path of this pattern is one of `other`'s."""
        if len(self.segments) < len(other.segments):
            return False
        pairs = zip(self.segments, other.segments, strict=False)
        if not all(mine == theirs or (is_param(theirs) and _fills(mine)) for mine, theirs in pairs):
            return False
        return other.rest or (len(self.segments) == len(other.segments) and not self.rest)

    def meets(self, other: "Pattern") -> bool:
        """Whether some path is one of both."""
        pairs = zip(self.segments, other.segments, strict=False)
        if not all(
            mine == theirs or (is_param(mine) and _fills(theirs)) or (is_param(theirs) and _fills(mine))
            for mine, theirs in pairs
        ):
            return False
        if len(self.segments) == len(other.segments):
            return True
        return self.rest if len(self.segments) < len(other.segments) else other.rest


def is_param(segment: str) -> bool:
    return segment.startswith("{")


def _fills(segment: str) -> bool:
    return segment != ""


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
    if "{" in segment or "}" in segment:
        if not _PARAM.fullmatch(segment):
            raise ValueError(f"'{segment}': a parameter is a whole segment such as {{name}}")
        return
    if segment in (".", "..") or not _LITERAL.fullmatch(segment):
        raise ValueError(
            f"'{segment}' can never match: write the segment as clients send it, without % ; ? # or dots alone"
        )
