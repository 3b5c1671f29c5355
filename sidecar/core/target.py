"""Raw request-target to the readings of its path.

What is decided on must be what the upstream will understand, and we cannot know how it reads a path. So every
plausible reading is made; the gate lets a request through only if all of them lead to the same decision,
and then forwards the client's own bytes. A target of ordinary characters has one reading and costs one.
"""

import re
from collections.abc import Callable, Iterator
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from sidecar.core.errors import Denied, Reason

MAX_READINGS = 48
"""More readings than that are refused: no honest path has them, and each costs time."""
MAX_CHARACTERS = 1 << 16
"""Of all readings together."""

# Segments that are empty only at the end and never begin with a dot, of characters that nobody transforms.
_PLAIN = re.compile(r"(?:/[A-Za-z0-9\-_~!$&'()*+,=:@][A-Za-z0-9\-_~!$&'()*+,=:@.]*)*/?")
_PATH = re.compile(r"/[!-\"$->@-~]*")
_QUERY = re.compile(r"[!-\"$-~]*")
_ORDINARY = re.compile(rf"({_PLAIN.pattern})(?:\?({_QUERY.pattern}))?")
_ABSOLUTE = re.compile(r"https?://([^/?#]+)(/[^#]*)?", re.IGNORECASE)
_ESCAPED_SLASH = re.compile(r"%(?=2[Ff])")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PARAMS = re.compile(r";[^/]*")
_SLASHES = re.compile(r"/{2,}")
_DOT_SEGMENT = re.compile(r"/\.\.?(?=/|\Z)")


class Target(Struct, frozen=True, kw_only=True, gc=False):
    """A request-target in origin form, taken apart but not changed."""

    path: str
    query: str | None
    """Without the question mark; None where there was none."""
    ordinary: bool = False
    """Whether the path is known to have one reading."""

    def __str__(self) -> str:
        return self.path if self.query is None else f"{self.path}?{self.query}"


def parse_target(raw: str, host: str) -> Target:
    """Origin form, or absolute form for the very `host` that the Host header names (RFC 9112 section 3.2.2).

    Raises Denied for every other form, for a fragment, and for bytes that no target may hold.
    """
    if not raw.startswith("/"):
        raw = _from_absolute(raw, host)
    if ordinary := _ORDINARY.fullmatch(raw):
        return Target(path=ordinary[1], query=ordinary[2], ordinary=True)
    path, mark, query = raw.partition("?")
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query) or path[:2] in ("//", "/\\"):
        raise Denied(Reason.BAD_TARGET)
    return Target(path=path, query=query if mark else None)


def readings(path: str) -> tuple[str, ...]:
    """Every plausible reading of `path`, the raw one first.

    Raises Denied for an escape that is none, for controls and bytes that are not UTF-8 in any reading, and for
    dots that climb above the root.
    """
    if _PLAIN.fullmatch(path):
        return (path,)
    if _BAD_ESCAPE.search(path):
        raise Denied(Reason.BAD_TARGET)
    seen = {(path, 0): None}
    pending = [(path, 0)]
    characters = len(path)
    while pending:
        text, decoded = pending.pop()
        for reading in _next_readings(text, decoded):
            if reading not in seen:
                seen[reading] = None
                pending.append(reading)
                characters += len(reading[0])
        if len(seen) > MAX_READINGS or characters > MAX_CHARACTERS:
            raise Denied(Reason.AMBIGUOUS_TARGET)
    return tuple(dict.fromkeys(text for text, _ in seen))


def with_prefix(target: Target, paths: tuple[str, ...], strip: str, add: str) -> str:
    """The request-target for the upstream: `strip` taken from the front of the path, `add` put before it.

    `paths` are the readings of the path; unless every one of them lies below `strip`, the request is refused.
    """
    if not strip and not add:
        return str(target)
    if strip and not all(path == strip or path.startswith(f"{strip}/") for path in paths):
        raise Denied(Reason.NO_ROUTE if len(paths) == 1 else Reason.AMBIGUOUS_TARGET)
    rest = target.path[len(strip) :] or "/"
    if rest[:2] in ("//", "/\\"):
        raise Denied(Reason.BAD_TARGET)
    return str(Target(path=add + rest, query=target.query))


def _from_absolute(raw: str, host: str) -> str:
    absolute = _ABSOLUTE.fullmatch(raw)
    if absolute is None or absolute[1].lower() != host.lower():
        raise Denied(Reason.BAD_TARGET)
    rest = raw[absolute.end(1) :]
    return rest if rest.startswith("/") else f"/{rest}"


def _next_readings(text: str, decoded: int) -> Iterator[tuple[str, int]]:
    if decoded < 2 and "%" in text:
        yield _decode(text), decoded + 1
        # Go's ServeMux splits before it decodes, and a WHATWG URL takes %2e%2e for dots but leaves %2f alone.
        yield _decode(_ESCAPED_SLASH.sub("%25", text)), decoded + 1
    for transform in _TRANSFORMS:
        changed = transform(text)
        if changed != text:
            yield changed, decoded


def _decode(text: str) -> str:
    try:
        decoded = unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise Denied(Reason.BAD_TARGET) from None
    if _CONTROL.search(decoded):
        raise Denied(Reason.BAD_TARGET)
    return decoded


def _slashes_for_backslashes(text: str) -> str:
    return text.replace("\\", "/")


def _without_params(text: str) -> str:
    return _PARAMS.sub("", text)


def _merged_slashes(text: str) -> str:
    return _SLASHES.sub("/", text)


def _resolved_dots(text: str) -> str:
    """RFC 3986 section 5.2.4, but climbing above the root is refused: no honest client does."""
    if not _DOT_SEGMENT.search(text):
        return text
    kept: list[str] = []
    segments = text.split("/")[1:]
    for segment in segments:
        if segment == "..":
            if not kept:
                raise Denied(Reason.BAD_TARGET)
            kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


_TRANSFORMS: tuple[Callable[[str], str], ...] = (
    _slashes_for_backslashes,
    _without_params,
    _merged_slashes,
    _resolved_dots,
)
