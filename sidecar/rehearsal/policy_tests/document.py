"""A file of policy tests as people write it: keys, cases, tables of cases, and their expectations."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NamedTuple

from msgspec import UNSET, Meta, Struct, field

from sidecar.config.decoder import leaf, made
from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.config.fields import FIELD_NAME, Name, Token, default, left_out, renamed, seconds
from sidecar.config.policy import Entry, Positive
from sidecar.core.errors import Reason
from sidecar.core.units import DURATION_PATTERN, microseconds, parse_duration
from sidecar.gate.observation import OBSERVABLE

# A request in one line, and its expectation in one word.

ALLOW, DENY = "allow", "deny"
NONE, UNKNOWN, MISTYPED, CUT = "none", "unknown", "mistyped", "cut"
RESERVED: Final[Mapping[str, str]] = MappingProxyType(
    {
        NONE: "no key",
        UNKNOWN: "a key of the right form that was never issued",
        MISTYPED: "a key with one wrong character",
        CUT: "a key without its end",
    }
)
"""Names that a request may use in place of one of `keys`."""
_REQUEST: Final = re.compile(rf"({FIELD_NAME}) +([!-~]+)(?: +as +(\S+))?")
_LOOKS_RIGHT: Final = re.compile(r"\S+ +\S+(?: +as +\S+)?")
_STATUS: Final = re.compile("[1-5][0-9][0-9]")
_WORDS: Final = (ALLOW, DENY, *Reason)
_MOST_TIMES: Final = 100_000
LATEST: Final = microseconds("3000-01-01")
_LONGEST_SECONDS: Final = 36_500 * 86_400


class RequestLine(NamedTuple):
    """`GET /v1/streams as reader`; `key` is None if it is left out."""

    text: str
    method: str
    target: str
    key: str | None


def parse_request(text: str) -> RequestLine:
    found = _REQUEST.fullmatch(text)
    if found is None:
        if _LOOKS_RIGHT.fullmatch(text):
            raise ValueError("a method and a target have printable ASCII only: write other characters as %XX")
        raise ValueError("must be METHOD TARGET, or METHOD TARGET as KEY, such as `GET /v1/streams as reader`")
    return RequestLine(text, found[1], found[2], found[3])


def parse_word(text: str) -> str | int:
    """`allow`, `deny`, a reason, or a status."""
    if text in _WORDS:
        return text
    if _STATUS.fullmatch(text):
        return int(text)
    near = did_you_mean(text, _WORDS)
    raise ValueError(f"must be allow, deny, a reason such as insufficient_scope, or a status such as 403{near}")


def parse_decision(text: str) -> str:
    if isinstance(word := parse_word(text), int):
        raise ValueError("must be allow, deny or a reason; a status is written as `status: 403`")
    return word


def parse_would_deny(text: str) -> str:
    """A reason for which a refusal may be only observed, or `none`."""
    if text in OBSERVABLE or text == NONE:
        return text
    if text in tuple(Reason):
        raise ValueError(f"{text} is always enforced: write `decision: {text}`")
    near = did_you_mean(text, (NONE, *OBSERVABLE))
    raise ValueError(f"must be a reason that `mode: observe` lets go on, such as insufficient_scope, or none{near}")


def parse_moment(text: str) -> int:
    """Microseconds. RFC 3339 can express every time within the longest duration of these."""
    try:
        found = microseconds(text)
    except ValueError:
        raise ValueError("must be a date or a time such as 2026-06-01T12:30:00Z") from None
    if not 0 <= found < LATEST:
        raise ValueError("must be in the years 1970 to 2999")
    return found


def _parse_time(text: str) -> float:
    if (found := parse_duration(text)) > _LONGEST_SECONDS:
        raise ValueError("must be at most 36500d")
    return found


def _parse_line(text: str) -> str:
    if any(char in text for char in "\r\n\0"):
        raise ValueError("must be one line")
    return text


def _plain(parse: Any, description: str, pattern: str = "") -> Meta:
    """As `leaf`, for text that YAML may read as a number: `403`, `X-RateLimit-Limit: 100`."""
    schema: dict[str, Any] = {"type": ["string", "number", "boolean"]}
    return Meta(
        description=description,
        extra={"parse": parse},
        extra_json_schema={**schema, "pattern": pattern} if pattern else schema,
    )


_REQUEST_TEXT = "a request such as GET /v1/streams as reader"
Request = Annotated[Any, leaf(parse_request, _REQUEST_TEXT, r"^\S+ +\S+( +as +\S+)?$")]
Word = Annotated[Any, _plain(parse_word, "allow, deny, a reason or a status", rf"^({'|'.join(_WORDS)}|[1-5]\d\d)$")]
Decision = Annotated[str, leaf(parse_decision, "allow, deny or a reason", f"^({'|'.join(_WORDS)})$")]
_OBSERVED = "|".join((NONE, *sorted(OBSERVABLE)))
WouldDeny = Annotated[str, leaf(parse_would_deny, "a reason that is only observed, or none", f"^({_OBSERVED})$")]
Status = Annotated[int, Meta(ge=100, le=599)]
Time = Annotated[float, leaf(_parse_time, "a duration such as 30s, 15m, 24h or 90d", DURATION_PATTERN)]
Moment = Annotated[int, _plain(parse_moment, "a date or a time such as 2026-06-01T12:30:00Z")]
HeaderText = Annotated[str, _plain(_parse_line, "the value of a header, in one line")]
HeaderValues = Mapping[Token, HeaderText | tuple[HeaderText, ...]]
NOW: Final = "2026-01-01T12:00:00Z"
"""The default, so that tests do not depend on the day on which they run."""
Count = Annotated[int, Meta(ge=0, le=10**15)]


# Keys.


KeyStatus = Literal["active", "disabled", "revoked", "expired", "retired"]


class KeyEntry(Entry, frozen=True, kw_only=True):
    """A key of a test. Defaults are those of `sidecar keys issue`."""

    scopes: tuple[str, ...] | None = left_out()
    tenant: str | None = left_out()
    environment: str | None = left_out()
    plan: str | None = left_out()
    quotas: Mapping[str, Positive] = field(default_factory=dict)
    """Limits of this key alone."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    name: str | None = left_out()
    id: Name | None = left_out()
    """By default `key_` and the key's name in the file."""
    status: KeyStatus = "active"
    age: Time = seconds("1d")
    """How long ago it was issued."""
    expires_in: Time | None = left_out()
    retires_in: Time | None = left_out()
    """The key was replaced, and its overlap ends after this time."""
    secret: str | None = left_out()
    """Its text, such as that of a key which was made elsewhere; by default one of the right form."""


# What is expected.


class ForwardedEntry(Entry, frozen=True, kw_only=True):
    """The request that reaches the upstream. `headers` are exact; `{key}` in them is the key's text."""

    target: str | None = left_out()
    upstream: str | None = left_out()
    """One of `upstreams`, or `default`."""
    headers: HeaderValues = field(default_factory=dict)
    present: tuple[Token, ...] = renamed("with", ())
    """Headers that are there, whatever their value."""
    without: tuple[Token, ...] = ()


class ResponseEntry(Entry, frozen=True, kw_only=True):
    """The response that the client gets; for a response of the upstream, only what the sidecar adds."""

    headers: HeaderValues = field(default_factory=dict)
    present: tuple[Token, ...] = renamed("with", ())
    without: tuple[Token, ...] = ()
    body: Any = UNSET
    """JSON, or text if the body is not JSON."""


class ExpectEntry(Entry, frozen=True, kw_only=True):
    """The expected outcome of a request. Options that are left out are not compared."""

    decision: Decision | None = left_out()
    would_deny: WouldDeny | None = left_out()
    """The refusal that is only observed (`mode: observe`), so the request is forwarded; `none` if there is none."""
    status: Status | None = left_out()
    route: str | None = left_out()
    """As in the configuration; `none` if no route matches."""
    takes: tuple[str, ...] | Mapping[str, Positive] | None = left_out()
    """All quotas that are counted; as a mapping, with the amount for each."""
    remaining: Mapping[str, Count] = field(default_factory=dict)
    forwarded: ForwardedEntry | None = left_out()
    response: ResponseEntry | None = left_out()


def expect_of(written: ExpectEntry | str | int, path: Path, report: Report) -> ExpectEntry:
    if isinstance(written, ExpectEntry):
        if written == ExpectEntry():
            raise ValueError("expects nothing: write allow, deny, a reason, or what is to be compared")
        return written
    return _EXPECTED.get(written) or ExpectEntry(status=int(written))


_EXPECTED: Final[Mapping[str | int, ExpectEntry]] = {word: ExpectEntry(decision=word) for word in _WORDS}
Expect = Annotated[ExpectEntry, made(expect_of, Word, ExpectEntry)]


# Cases.


class CaseEntry(Entry, frozen=True, kw_only=True):
    """One request, and its expected outcome."""

    examples = MappingProxyType(
        {
            "request": "`request: GET /v1/streams`; in one line, a case is `- GET /v1/streams as reader: allow`",
            "expect": "`expect: allow`, or a mapping with decision, would_deny, status, route, takes, and so on",
        }
    )

    request: Request
    expect: Expect
    name: str | None = left_out()
    key: str | KeyEntry | None = left_out()
    headers: HeaderValues = field(default_factory=dict)
    """`{key}` in them, or in the target, is the key's text, which is then in no other place."""
    peer: str | None = left_out()
    """Address of the client's socket."""
    times: Annotated[int, Meta(ge=1, le=_MOST_TIMES)] = 1
    """The number of times that the request is sent; the last one is compared."""
    used: Mapping[str, Positive] = field(default_factory=dict)
    """The amount of each quota that is used up before the request."""
    after: Time = seconds("0s")
    """The time that passes between `used` and the request."""


def case_of(written: CaseEntry | Mapping[RequestLine, ExpectEntry], path: Path, report: Report) -> CaseEntry:
    if isinstance(written, CaseEntry):
        return written
    [(request, expect)] = written.items()
    return CaseEntry(request=request, expect=expect)


_ShortCase = Annotated[Mapping[Request, Expect], Meta(min_length=1, max_length=1)]
Case = Annotated[CaseEntry, made(case_of, _ShortCase, CaseEntry)]
Cases = Annotated[tuple[Case, ...], Meta(min_length=1)]


class DefaultsEntry(Entry, frozen=True, kw_only=True):
    """The defaults of each case."""

    key: str | None = left_out()
    headers: HeaderValues = field(default_factory=dict)
    peer: str | None = left_out()


class GroupEntry(DefaultsEntry, frozen=True, kw_only=True):
    """Cases under one name."""

    examples = MappingProxyType({"cases": "`cases: [{GET /v1/streams as reader: allow}]`"})

    name: str = ""
    sequence: bool = False
    """Whether each case starts with the counts, and at the time, at which the previous one ended."""
    cases: Cases


class TableEntry(Entry, frozen=True, kw_only=True):
    """The same requests with several keys: a column for each key, a row for each request."""

    examples = MappingProxyType(
        {
            "keys": "the columns, as `keys: [none, reader, writer]`",
            "requests": "the rows, as `requests: {GET /v1/streams: [missing_credential, allow, allow]}`",
        }
    )

    name: str = ""
    keys: Annotated[tuple[str, ...], Meta(min_length=1)]
    requests: Annotated[Mapping[Request, Word | tuple[Word, ...]], Meta(min_length=1)]
    """A single word applies to every column."""


class Document(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of policy tests."""

    config: str | None = left_out()
    """The configuration, from the folder of this file."""
    variables: Mapping[str, HeaderText] = field(default_factory=dict)
    """Environment variables, for `${VAR}` in the configuration."""
    now: Moment = default(NOW, parse_moment(NOW))
    """The time at which the tests take place."""
    defaults: DefaultsEntry = DefaultsEntry()
    keys: Mapping[Name, KeyEntry] = field(default_factory=dict)
    cases: Cases | None = left_out()
    groups: tuple[GroupEntry, ...] = ()
    tables: tuple[TableEntry, ...] = ()
