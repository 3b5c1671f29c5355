"""The places of a key in a request, and how it is distinguished from credentials that are not ours."""

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple
from urllib.parse import unquote_plus, unquote_to_bytes

from msgspec import Struct

from sidecar.core.errors import Denied, Reason
from sidecar.core.model import Headers, Source

_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
"""RFC 7235: the characters of a Bearer credential."""
_PRINTABLE = re.compile(rb"[ -~]*")


class Credential(Struct, frozen=True, kw_only=True, gc=False):
    """What the client presented: something that looks like a key, or (`foreign`) something that is not ours."""

    text: str
    foreign: bool = False
    sources: frozenset[Source] = frozenset()

    @property
    def cookies(self) -> list[str]:
        """Names of the cookies that contained it."""
        return [source.name for source in self.sources if source.kind == "cookie"]

    def __repr__(self) -> str:
        return f"Credential(foreign={self.foreign}, sources={self.sources})"


_FOREIGN = Credential(text="", foreign=True)

Fields = Mapping[bytes, Sequence[bytes]]
"""Lower-case header name to its values in order."""


class _Expected(NamedTuple):
    """A header source: its scheme in lower case, the source that the credential names, and its half of Basic."""

    scheme: str | None
    sources: frozenset[Source]
    part: Literal["username", "password"] | None


class CredentialRules:
    """The configured sources and pass-through, compiled.

    prefixes: those of keys; an empty one accepts every text as a key. one_space: further spaces after a scheme belong
    to the credential, although RFC 9110 section 11.4 allows any number as separator.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        pass_through: Sequence[Source],
        prefixes: Sequence[str],
        *,
        one_space: bool = False,
    ) -> None:
        self._one_space = one_space
        self._prefixes = tuple(filter(None, prefixes))
        self._any_text = "" in prefixes
        self._queries = [source for source in sources if source.kind == "query"]
        self._cookies = [source for source in sources if source.kind == "cookie"]
        self._headers: dict[bytes, list[_Expected]] = {}
        self._lists = [source for source in sources if source.in_list]
        for source in sources:
            if source.kind == "header" and not source.in_list:
                expected = _Expected(source.scheme and source.scheme.lower(), frozenset((source,)), source.part)
                self._headers.setdefault(source.name.lower().encode(), []).append(expected)
        self._passing: dict[bytes, set[str]] = {}
        for source in pass_through:
            if source.kind == "header":
                self._passing.setdefault(source.name.lower().encode(), set()).add((source.scheme or "").lower())
        self._passing_cookies = frozenset(source.name for source in pass_through if source.kind == "cookie")
        self.header_names = frozenset(name.decode() for name in self._headers)
        """Headers whose whole value is a credential."""
        self.list_names = frozenset(source.name.lower() for source in self._lists)
        self.passing_names = frozenset(name.decode() for name in self._passing)
        self.may_pass = bool(pass_through)
        """Whether any credential that is not ours may pass."""

    def find(self, fields: Fields, query: str | None) -> Credential | None:
        """The credential in the place of a key, or None if there is none.

        Raises Denied if one is malformed, doubled, or contradicts another.
        """
        found = self._in_headers(fields)
        if self._lists:
            found += self._in_lists(fields)
        if self._cookies:
            found += self._in_cookies(fields)
        if query:
            found += self._in_query(query)
        if not found:
            return None
        first = found[0]
        if len(found) == 1:
            return first
        if any(other.text != first.text or other.foreign != first.foreign for other in found):
            raise Denied(Reason.MALFORMED_CREDENTIAL)
        return Credential(
            text=first.text,
            foreign=first.foreign,
            sources=frozenset().union(*(other.sources for other in found)),
        )

    def lone(self, fields: Fields, query: str | None) -> Credential | None:
        """Whatever is in the place of a key, to be removed; None for nothing.

        text: without the scheme; empty if it is too short for a key, so that no copies are searched for. Raises Denied
        if it is ambiguous, or in a place from which it cannot be removed.
        """
        if query and not self._queries:
            self._refuse_key_in_query(query)
        found = [*self._whole_headers(fields), *self._whole_values(fields, query or "")]
        if len(found) > 1 or any(not _PRINTABLE.fullmatch(text.encode("utf-8", "replace")) for text, _ in found):
            raise Denied(Reason.MALFORMED_CREDENTIAL)
        for text, source in found:
            return Credential(text=text if len(text) >= _LEAST_WITHIN else "", sources=frozenset((source,)))
        return None

    def _whole_headers(self, fields: Fields) -> Iterator[tuple[str, Source]]:
        for name, expected in self._headers.items():
            for value in fields.get(name, ()):
                _, _, rest = value.decode("latin-1").partition(" ")
                yield rest.strip(" ") or value.decode("latin-1"), next(iter(expected[0].sources))

    def _whole_values(self, fields: Fields, query: str) -> Iterator[tuple[str, Source]]:
        for source in self._lists:
            lines = fields.get(source.name.lower().encode(), ())
            items = [item.strip(b" \t").decode("latin-1") for line in lines for item in line.split(b",")]
            yield from ((item, source) for item in items if item.startswith(self._prefixes))
        for source in self._cookies:
            yield from ((value, source) for name, value in cookies(fields) if name == source.name)
        for source in self._queries:
            yield from ((value, source) for name, value in parameters(query) if name == source.name)

    def usual_line(self) -> re.Pattern[bytes] | None:
        """Matches a header line with a credential in the usual form, and the CR LF before it; group 1 is the
        credential.

        To be searched for in header lines. `find` returns the same credential, unless there is another one as well.
        None if no header has such a form.
        """
        forms: list[bytes] = []
        for name, expected in self._headers.items():
            schemes = [each.scheme for each in expected if each.part is None]
            if len(schemes) == len(expected) and (len(schemes) == 1 or None not in schemes):
                forms += [re.escape(name + b": " + (f"{scheme} ".encode() if scheme else b"")) for scheme in schemes]
        if not forms:
            return None
        begins = b"|".join(re.escape(prefix.encode()) for prefix in self._prefixes)
        return re.compile(
            rb"\r\n(?i:%b)%b([!-~]++)(?=\r\n|\Z)" % (b"|".join(forms), b"" if self._any_text else b"(?=%b)" % begins)
        )

    def foreign(self, reaching: Headers) -> Credential | None:
        """A credential that is not ours, if the upstream gets it to verify.

        reaching: the header fields that reach it unchanged. A field that the sidecar removes, or trusts only from
        proxies, cannot be refused by the upstream, and so lets nobody pass.
        """
        values: dict[bytes, list[bytes]] = {}
        for name, value in reaching:
            values.setdefault(name.lower(), []).append(value)
        for name in self._passing:
            lines = values.get(name, ())
            if len(lines) == 1 and self._passing_part(name, lines[0].decode("latin-1")):
                return _FOREIGN
        if self._passing_cookies and self._passes_in_cookie(values):
            return _FOREIGN
        return None

    def _in_headers(self, fields: Fields) -> list[Credential]:
        found = []
        for name, expected in self._headers.items():
            values = fields.get(name)
            if values is not None:
                if len(values) > 1 or not _PRINTABLE.fullmatch(values[0]):
                    raise Denied(Reason.MALFORMED_CREDENTIAL)
                found.append(self._in_header(name, values[0].decode("ascii"), expected))
        return found

    def _in_header(self, name: bytes, value: str, expected: Sequence["_Expected"]) -> Credential:
        scheme, _, rest = value.partition(" ")
        scheme = scheme.lower()
        if rest.startswith(" ") and not self._one_space:
            rest = rest.lstrip(" ")
        for wanted, sources, part in expected:
            if wanted is not None and wanted != scheme:
                continue
            text = value if wanted is None else rest if part is None else self._half(rest, part)
            if text.startswith(self._prefixes):
                return Credential(text=text, sources=sources)
            if self._any_text and text.strip():
                return Credential(text=text, sources=sources)
            return self._not_ours(name, value, text)
        if self._passing_part(name, value):
            return Credential(text=value, foreign=True)
        raise Denied(Reason.MALFORMED_CREDENTIAL)

    def _half(self, encoded: str, part: Literal["username", "password"]) -> str:
        """The half of base64 `username:password`.

        With a key in the other half, too, it would be unclear which one counts.
        """
        try:
            text = a2b_base64(encoded, strict_mode=True).decode("utf-8", "surrogateescape")
        except ValueError:
            raise Denied(Reason.MALFORMED_CREDENTIAL) from None
        username, colon, password = text.partition(":")
        half, other = (username, password) if part == "username" else (password, username)
        if not colon or (other != half and other.startswith(self._prefixes)):
            raise Denied(Reason.MALFORMED_CREDENTIAL)
        return half

    def _not_ours(self, name: bytes, value: str, text: str) -> Credential:
        if _TOKEN68.fullmatch(self._passing_part(name, value)):
            return Credential(text=text, foreign=True)
        raise Denied(Reason.INVALID_KEY if text.strip() else Reason.MALFORMED_CREDENTIAL)

    def _passing_part(self, name: bytes, value: str) -> str:
        """The part of a header's value that may pass, without its scheme; empty if none may, or it contains our key."""
        schemes: Collection[str] = self._passing.get(name, ())
        scheme, _, rest = value.partition(" ")
        part = rest.strip(" ")
        if value.startswith(self._prefixes) or part.startswith(self._prefixes):
            return ""
        if scheme.lower() in schemes:
            return rest if self._one_space and part else part
        return value.strip() if "" in schemes else ""

    def _in_lists(self, fields: Fields) -> Iterator[Credential]:
        """Credentials among list items. Other items are not our concern."""
        for source in self._lists:
            lines = fields.get(source.name.lower().encode(), ())
            items = [item.strip(b" \t").decode("latin-1") for line in lines for item in line.split(b",")]
            keys = [item for item in items if item.startswith(self._prefixes)]
            if keys:
                yield self._one_of(keys, source)

    def _in_cookies(self, fields: Fields) -> Iterator[Credential]:
        for source in self._cookies:
            values = [value for name, value in cookies(fields) if name == source.name]
            if values:
                yield self._one_of(values, source)

    def _in_query(self, query: str) -> Iterator[Credential]:
        if not self._queries:
            self._refuse_key_in_query(query)
        for source in self._queries:
            values = [value for name, value in parameters(query) if name == source.name]
            if values:
                yield self._one_of(values, source)

    def _one_of(self, values: Sequence[str], source: Source) -> Credential:
        if len(values) > 1:
            raise Denied(Reason.MALFORMED_CREDENTIAL)
        text = values[0]
        if text.startswith(self._prefixes) or (self._any_text and text.strip()):
            return Credential(text=text, sources=frozenset((source,)))
        if text and source.kind == "cookie" and source.name in self._passing_cookies:
            return Credential(text=text, foreign=True)
        raise Denied(Reason.INVALID_KEY if text else Reason.MALFORMED_CREDENTIAL)

    def _refuse_key_in_query(self, query: str) -> None:
        """A key in the query ends up in logs and histories; it is refused even if none is needed."""
        if any(prefix in query for prefix in self._prefixes) or "%" in query:
            for _, value in parameters(query):
                if value.startswith(self._prefixes) and _TOKEN68.fullmatch(value):
                    raise Denied(Reason.MALFORMED_CREDENTIAL)

    def _passes_in_cookie(self, fields: Fields) -> bool:
        values: dict[str, list[str]] = {}
        for name, value in cookies(fields):
            values.setdefault(name, []).append(value.strip('"'))
        found = (values.get(name, ()) for name in self._passing_cookies)
        return any(len(given) == 1 and given[0] and not given[0].startswith(self._prefixes) for given in found)


def header_value(source: Source, text: str) -> str:
    """The value of a header source with the credential `text`, as clients send it."""
    if source.part is not None:
        pair = f"{text}:" if source.part == "username" else f":{text}"
        text = b2a_base64(pair.encode("utf-8", "surrogateescape"), newline=False).decode()
    return f"{source.scheme} {text}" if source.scheme else text


def cookies(fields: Fields) -> list[tuple[str, str]]:
    """Cookie pairs in order, from all Cookie lines."""
    pairs = []
    for line in fields.get(b"cookie", ()):
        for pair in line.decode("latin-1").split(";"):
            name, _, value = pair.strip(" \t").partition("=")
            pairs.append((name, value))
    return pairs


def parameters(query: str) -> list[tuple[str, str]]:
    """Query parameters in order, decoded."""
    pairs = [pair.partition("=") for pair in query.split("&")]
    return [(unquote_plus(name), unquote_plus(value)) for name, _, value in pairs]


def without_parameter(query: str, name: str) -> str:
    """The query without the parameter, every other byte unchanged."""
    return "&".join(pair for pair in query.split("&") if unquote_plus(pair.partition("=")[0]) != name)


def without_cookie(line: bytes, name: str) -> bytes:
    """A Cookie line without the cookie; empty if it was the only one."""
    kept = [pair for pair in line.split(b";") if pair.strip(b" \t").partition(b"=")[0] != name.encode("latin-1")]
    return b";".join(kept).strip()


_FURTHER_COOKIE = re.compile(rb"[\s,]([^\s,=]+)\s*=")
"""Within a pair: where RFC 2109 and Python's http.cookies let another cookie begin."""
_PHP_NAME = bytes.maketrans(b" .[", b"___")


def without_cookie_like(line: bytes, name: str) -> bytes:
    """As `without_cookie`, and without every pair in which a lenient service may read the cookie.

    Node and Python take spaces off a name, ASP.NET ignores its case, old PHP and Rack decode it, and PHP reads dots as
    underscores.
    """
    wanted = _lenient_name(name.encode("latin-1"))
    kept = [pair for pair in line.split(b";") if wanted not in map(_lenient_name, _cookie_names(pair))]
    return b";".join(kept).strip()


def _cookie_names(pair: bytes) -> list[bytes]:
    return [pair.partition(b"=")[0], *_FURTHER_COOKIE.findall(pair)]


def _lenient_name(name: bytes) -> bytes:
    return unquote_to_bytes(name).strip(b' \t"').lower().translate(_PHP_NAME)


def without_item(line: bytes, item: bytes) -> bytes:
    """A list line without an item, the others unchanged; empty if it was the only one."""
    items = line.split(b",")
    kept = [each for each in items if each.strip(b" \t") != item]
    return line if len(kept) == len(items) else b",".join(kept).strip(b" \t")


# Copies of a recognised credential elsewhere in the request, which would carry it to the upstream.


_LEAST_WITHIN = 16
"""Shorter credentials are only searched for as whole values: they may be ordinary words."""
_MOST_DECODED = 3
BASIC_SIGN = b"basic"
"""What precedes Basic credentials, in lower case."""
_BASIC = re.compile(rb"basic[\t +]+\"?([a-z0-9+/_-]+)", re.IGNORECASE)
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class Copies:
    """Finds a credential elsewhere in a request: as it is, percent-encoded, or inside Basic credentials."""

    __slots__ = ("_plain", "_text")

    def __init__(self, text: str) -> None:
        self._plain, self._text = text, text.encode("utf-8", "surrogatepass")

    def are_in(self, value: bytes) -> bool:
        return self._may_be_in(value) and any(map(self._is_within, _readings(value)))

    def are_in_text(self, text: str) -> bool:
        if self._plain not in text and "%" not in text:
            return False
        return self.are_in(text.encode("utf-8", "surrogateescape"))

    def removed_from(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The headers without those, and without cookies, that contain it."""
        if not self._may_be_in(b"\n".join(map(b"\n".join, headers))):
            return headers
        kept = []
        for name, value in headers:
            lower = name.lower()
            if lower == b"cookie":
                left = self._cookies_without(value)
                if left or not value:
                    kept.append((name, left))
            elif not (self.are_in(value) or self._is_elsewhere_in(name, lower, value)):
                kept.append((name, value))
        return kept

    def removed_from_query(self, query: str) -> str:
        """The query without parameters that contain it."""
        raw = query.encode("utf-8", "surrogateescape")
        if not self._may_be_in(raw) and b"+" not in raw:
            return query
        return "&".join(pair for pair in query.split("&") if not self._is_in_pair(pair))

    def _may_be_in(self, values: bytes) -> bool:
        return self._text in values or b"%" in values or BASIC_SIGN in values.lower()

    def _is_within(self, value: bytes) -> bool:
        return self._text in value if len(self._text) >= _LEAST_WITHIN else self._text == value.strip(b' \t"')

    def _is_elsewhere_in(self, name: bytes, lower: bytes, value: bytes) -> bool:
        """Also checks the header's name for a long one; a short one may be everything after a scheme."""
        if len(self._text) >= _LEAST_WITHIN:
            return self.are_in(name)
        return lower == b"authorization" and self.are_in(value.partition(b" ")[2])

    def _cookies_without(self, line: bytes) -> bytes:
        pairs = line.split(b";")
        kept = [pair for pair in pairs if not any(map(self.are_in, (pair, pair.partition(b"=")[2])))]
        return line if len(kept) == len(pairs) else b";".join(kept).strip()

    def _is_in_pair(self, pair: str) -> bool:
        name, _, value = pair.encode("utf-8", "surrogateescape").partition(b"=")
        return any(map(self.are_in, (name, value, value.replace(b"+", b" "))))


def _readings(value: bytes) -> Iterator[bytes]:
    for reading in _decodings(value):
        yield reading
        for encoded in _BASIC.findall(reading):
            whole = _lenient_base64(encoded)
            yield whole
            for half in whole.split(b":", 1):
                yield from _decodings(half)


def _decodings(value: bytes) -> Iterator[bytes]:
    """The text as it is, and percent-decoded once or more often."""
    yield value
    for _ in range(_MOST_DECODED):
        if b"%" not in value:
            break
        value = unquote_to_bytes(value)
        yield value


def _lenient_base64(encoded: bytes) -> bytes:
    """Decodes like the least careful parser: either alphabet, with any padding or truncation."""
    text = encoded.translate(_URL_SAFE)
    return a2b_base64(text[: len(text) - (len(text) % 4 == 1)] + b"==")
