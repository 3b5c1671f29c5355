"""Raw request-target to the readings of its path.

The decision must apply to what the upstream will understand, and we cannot know how it reads a path. So every plausible
reading is made; the gate allows a request only if all of them lead to the same decision, and then forwards the client's
own bytes. A target of ordinary characters has one reading and costs one.
"""

import re
from collections.abc import Callable, Iterator
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from sidecar.core.errors import Denied, Reason

MAX_READINGS = 48
"""A path with more readings is refused: no honest path has them, and each costs time."""
MAX_CHARACTERS = 1 << 16
"""Most characters of all readings together."""
KEPT_SLASH = "\uffff"
"""In readings: an encoded slash that does not split.

A client may send this noncharacter, which does not split either.
"""

# Segments that are only empty at the end and never begin with a dot, of characters that no parser transforms.
_PLAIN = re.compile(r"(?:/[A-Za-z0-9\-_~!$&'()*+,=:@][A-Za-z0-9\-_~!$&'()*+,=:@.]*)*/?")
_PATH = re.compile(r"/[!-\"$->@-~]*")
_QUERY = re.compile(r"[!-\"$-~]*")
_ORDINARY = re.compile(rf"({_PLAIN.pattern})(?:\?({_QUERY.pattern}))?")
_ABSOLUTE = re.compile(r"https?://([^/?#]+)(/[^#]*)?", re.IGNORECASE)
_ENCODED_SLASH = re.compile(r"%(2[Ff])")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LINE_END = re.compile(r"[\r\n]")
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f\udc80-\udcff]")
_SINCE_NUL = re.compile(r"\x00[^/]*")
# RFC 3629 section 3: an overlong form writes a character, such as a dot, in more bytes than needed. C0 and C1 begin
# nothing else. The forms of five and six bytes are those of RFC 2279.
_OVERLONG = re.compile(rb"[\xc0\xc1]|\xe0[\x80-\x9f]|\xf0[\x80-\x8f]|\xf8[\x80-\x87]|\xfc[\x80-\x83]")
_PARAMS = re.compile(r";[^/]*")
_SLASHES = re.compile(r"/{2,}")
_DOT_SEGMENT = re.compile(r"/\.\.?(?=/|\Z)")


class Target(Struct, frozen=True, kw_only=True, gc=False):
    """A request-target in origin form, taken apart but not changed."""

    path: str
    query: str | None
    """Without the question mark; None if there was none."""
    ordinary: bool = False
    """Whether the path is known to have one reading."""

    def __str__(self) -> str:
        return self.path if self.query is None else f"{self.path}?{self.query}"


def parse_target(raw: str, host: str) -> Target:
    """Parse origin form, or absolute form for the same `host` as in the Host header (RFC 9112 section 3.2.2).

    Raises Denied for every other form, for a fragment, and for bytes that a target must not contain.
    """
    if not raw.startswith("/"):
        raw = _from_absolute(raw, host)
    if ordinary := _ORDINARY.fullmatch(raw):
        return Target(path=ordinary[1], query=ordinary[2], ordinary=True)
    path, mark, query = raw.partition("?")
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query) or path[:2] in ("//", "/\\"):
        raise Denied(Reason.BAD_TARGET)
    return Target(path=path, query=query if mark else None)


def readings(path: str, *, keep_slash: bool = False) -> tuple[str, ...]:
    """Every plausible reading of `path`, the raw one first; a byte that is not UTF-8 is a surrogate (PEP 383).

    keep_slash: the upstream does not split at %2F, which is then KEPT_SLASH.
    Raises Denied for an invalid escape, for controls and bytes that are not UTF-8 after one decoding, for line ends and
    overlong forms in any reading, for dots that climb above the root, and, if slashes are kept, for dots in a path with
    an encoded slash.
    """
    if _PLAIN.fullmatch(path):
        return (path,)
    if _BAD_ESCAPE.search(path):
        raise Denied(Reason.BAD_TARGET)
    if not keep_slash or not _ENCODED_SLASH.search(path):
        found = _all_readings(path, decodings=2)
        if not keep_slash or not any(map(_ENCODED_SLASH.search, found)):
            return found
    # An upstream that keeps `a%2F..%2Fb` in one segment may decode it later, for a file or for another service.
    if any(map(_DOT_SEGMENT.search, _all_readings(path, decodings=3))):
        raise Denied(Reason.AMBIGUOUS_TARGET)
    return _all_readings(_ENCODED_SLASH.sub(KEPT_SLASH, path), decodings=2)


def _all_readings(path: str, *, decodings: int) -> tuple[str, ...]:
    seen = {(path, 0): None}
    pending = [(path, 0)]
    characters = len(path)
    while pending:
        text, decoded = pending.pop()
        for reading in _next_readings(text, decoded, decodings):
            if reading not in seen:
                seen[reading] = None
                pending.append(reading)
                characters += len(reading[0])
        if len(seen) > MAX_READINGS or characters > MAX_CHARACTERS:
            raise Denied(Reason.AMBIGUOUS_TARGET)
    return tuple(dict.fromkeys(text for text, _ in seen))


def with_prefix(target: Target, paths: tuple[str, ...], strip: str, add: str, *, keep_slash: bool = False) -> str:
    """The request-target for the upstream: `strip` removed from the front of the path, `add` put before it.

    `paths` are the readings of the path, made with `keep_slash`. The request is refused unless all of them are below
    `strip`, and the rest has no readings but theirs.
    """
    if not strip and not add:
        return str(target)
    if strip and not all(path == strip or path.startswith(f"{strip}/") for path in paths):
        raise Denied(Reason.NO_ROUTE if len(paths) == 1 else Reason.AMBIGUOUS_TARGET)
    rest = target.path[len(strip) :] or "/"
    if rest[:2] in ("//", "/\\"):
        raise Denied(Reason.BAD_TARGET)
    if strip and len(paths) > 1:
        # What is /api/a/../../api/x here, and so /x below /api, may be /api/x to an upstream that gets /a/../../api/x.
        expected = {path[len(strip) :] or "/" for path in paths}
        if not expected.issuperset(readings(rest, keep_slash=keep_slash)):
            raise Denied(Reason.AMBIGUOUS_TARGET)
    return str(Target(path=add + rest, query=target.query))


def _from_absolute(raw: str, host: str) -> str:
    absolute = _ABSOLUTE.fullmatch(raw)
    if absolute is None or absolute[1].lower() != host.lower():
        raise Denied(Reason.BAD_TARGET)
    rest = raw[absolute.end(1) :]
    return rest if rest.startswith("/") else f"/{rest}"


def _next_readings(text: str, decoded: int, decodings: int) -> Iterator[tuple[str, int]]:
    if decoded < decodings and "%" in text:
        decode = _decode_again if decoded else _decode
        yield decode(text), decoded + 1
        # Go's ServeMux splits before it decodes, and a WHATWG URL treats %2e%2e as dots but keeps %2f.
        yield decode(_ENCODED_SLASH.sub(r"%25\1", text)), decoded + 1
    for transform in _TRANSFORMS if decoded < 2 else _TRANSFORMS_OF_BYTES:
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


def _decode_again(text: str) -> str:
    """Decode a decoded path again. A file may be called `50%cashback`, so the result need not be text."""
    raw = unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
    if _OVERLONG.search(raw):
        raise Denied(Reason.BAD_TARGET)
    decoded = raw.decode("utf-8", "surrogateescape")
    if _LINE_END.search(decoded):
        raise Denied(Reason.BAD_TARGET)
    return decoded


def _until_nul(text: str) -> str:
    """Cut at a NUL, which C code treats as the end."""
    return text.partition("\0")[0]


def _segments_until_nul(text: str) -> str:
    """Like C code that splits first."""
    return _SINCE_NUL.sub("", text)


def _without_bytes_that_are_no_text(text: str) -> str:
    """Like lenient decoders, which drop bytes that are not UTF-8 (Python's `errors="ignore"`), and like filters."""
    return _NO_TEXT.sub("", text)


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
_TRANSFORMS_OF_BYTES = (_until_nul, _segments_until_nul, _without_bytes_that_are_no_text, *_TRANSFORMS)
