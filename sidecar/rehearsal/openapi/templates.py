"""Path templates of OpenAPI (`/repos/{owner}/{repo}/compare/{base}...{head}`) as patterns of routes.

A pattern has one parameter in a segment, `**` only at its end, and fixed text without escapes. Any other template is
widened to the nearest pattern that matches all of its paths, with a remark that says so.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from sidecar.core.patterns import Pattern, parse_pattern

_FIXED = re.compile(r"[A-Za-z0-9\-._~!$&'()+,=:@]*")
_PIECE = re.compile(r"\{[^{}]*\}|[^{}/?#]+|.", re.DOTALL)
_EXPRESSION = re.compile(r"\{([^{}]*)\}")
_NO_PATH = ("{?", "{&", "{;", "{#")
"""RFC 6570: expressions for a query, for parameters of a segment and for a fragment."""
_EXPRESS = re.compile(r":([A-Za-z_][A-Za-z0-9_]*)")
_REST_NAMES = frozenset({"path", "filepath", "file_path", "subpath", "proxy", "splat", "wildcard", "rest"})
"""Names of a last parameter that may contain slashes, in the documents of Kubernetes, GitHub and gateways."""
_PLACEHOLDER = "value"
_MOST_NAME = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A path template, the pattern that matches all of its paths, and remarks on how they differ."""

    text: str
    """As written, with the base path before it."""
    pattern: Pattern
    remarks: tuple[str, ...] = ()


def template_of(text: str, slashes: Collection[str] = ()) -> Template:
    """slashes: names of parameters whose values may contain slashes."""
    reading = _Reading(frozenset(slashes))
    pattern = reading.pattern(text)
    return Template(text=text, pattern=pattern, remarks=tuple(dict.fromkeys(reading.remarks)))


@dataclass(slots=True)
class _Reading:
    slashes: frozenset[str]
    remarks: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def pattern(self, text: str) -> Pattern:
        segments = list(self._segments(text))
        last, made, rest = len(segments) - 1, list[str](), False
        for position, segment in enumerate(segments):
            if position == last and self._takes_slashes(segment, last=True):
                self.remarks.append(f"`{segment}` may contain slashes: `**` stands for it, and also matches nothing")
                rest = True
                continue
            if self._takes_slashes(segment, last=False):
                self.remarks.append(
                    f"`{segment}` may contain slashes, but a pattern has `**` only at its end: one segment"
                )
            made.append(self._segment(segment))
        return parse_pattern("/" + "/".join([*made, *(["**"] if rest else [])]))

    def _segments(self, text: str) -> Iterator[str]:
        """Without query and fragment, empty segments and dots; an empty last one is a slash at the end."""
        segments, whole = _split(text)
        if not whole:
            self.remarks.append("a route matches the path alone: query and fragment are left out")
        kept = [each for each in segments[:-1] if each not in ("", ".", "..")] + [segments[-1]]
        if kept != segments or kept[-1] in (".", ".."):
            self.remarks.append("empty segments and dots can never match: they are left out")
        yield from (each if each not in (".", "..") else "" for each in kept)

    def _takes_slashes(self, segment: str, *, last: bool) -> bool:
        names = _EXPRESSION.findall(segment)
        if segment in ("*", "**") or any(_is_greedy(name) or _bare(name) in self.slashes for name in names):
            return True
        alone = len(names) == 1 and segment == f"{{{names[0]}}}"
        return last and alone and _bare(names[0]).lower() in _REST_NAMES

    def _segment(self, segment: str) -> str:
        express = _EXPRESS.fullmatch(segment)
        if express is not None:
            self.remarks.append(f"`{segment}` is treated as a parameter")
            return self._param(express[1])
        names = _EXPRESSION.findall(segment)
        before, after = segment, ""
        if names:
            before, after = segment[: segment.index("{")], segment[segment.rindex("}") + 1 :]
        if len(names) > 1:
            self.remarks.append(f"`{segment}` has several parameters, but a route takes one in a segment")
        return self._with_fixed_text(segment, names, unquote(before), unquote(after))

    def _with_fixed_text(self, segment: str, names: list[str], before: str, after: str) -> str:
        prefix, suffix, name = _fixed_head(before), _fixed_head(after[::-1])[::-1], "_".join(map(_bare, names))
        whole = prefix == before and suffix == after
        if whole and names:
            return f"{prefix}{self._param(name)}{suffix}"
        if whole and prefix not in (".", ".."):
            return prefix
        self.remarks.append(f"`{segment}` contains what no pattern can: a parameter stands for it")
        return f"{prefix.strip('.')}{self._param(name or _PLACEHOLDER)}{suffix}"

    def _param(self, name: str) -> str:
        """The parameter, with a name that a pattern allows and that is unique in it."""
        clean = re.sub(r"[^A-Za-z0-9_]", "_", name)[:_MOST_NAME] or _PLACEHOLDER
        clean = f"_{clean}" if clean[0].isdigit() else clean
        made = clean
        while made in self.names:
            made = f"{clean}{2 + sum(each.startswith(clean) for each in self.names) - 1}"
            clean += "_" if made in self.names else ""
        self.names.append(made)
        return f"{{{made}}}"


def _split(text: str) -> tuple[list[str], bool]:
    """The segments of a template, and whether it has nothing else (query or fragment). A slash within `{}` does not
    separate.
    """
    segments, whole = [""], True
    for piece in _PIECE.findall(text.removeprefix("/")):
        if piece in ("?", "#"):
            return segments, False
        if piece.startswith(_NO_PATH):
            whole = False
        elif piece == "/":
            segments.append("")
        else:
            segments[-1] += piece
    return segments, whole


def _fixed_head(text: str) -> str:
    found = _FIXED.match(text)
    return found[0] if found else ""


def _is_greedy(name: str) -> bool:
    """`{+name}` (RFC 6570), `{name+}` (API Gateway), `{name*}`, `{name:path}` (Starlette), `{name:.*}` (gorilla)."""
    bare, _, kind = name.partition(":")
    return bare[:1] in ("+", "/") or bare[-1:] in ("+", "*") or kind == "path" or ".*" in kind or ".+" in kind


def _bare(name: str) -> str:
    """The name of a parameter without operators and types."""
    return name.partition(":")[0].strip("+*/ ")
