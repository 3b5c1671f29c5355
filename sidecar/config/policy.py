"""The sections on keys, scopes, quotas and paths.

A struct is a mapping in the file. A struct whose name ends in `Entry` is converted to another value: immediately, by
the function next to it, or in `build`, which resolves its names. The program uses every other struct as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from sidecar.config.decoder import leaf, made
from sidecar.config.errors import Path, Report
from sidecar.config.fields import (
    Duration,
    DurationOrOff,
    ForeignPrefix,
    KeyPrefix,
    Name,
    OptionalToken,
    Period,
    default,
    left_out,
    matching,
    off,
    renamed,
    seconds,
)
from sidecar.core.apikey import STORED_RANDOM, ForeignHash, ForeignKeys
from sidecar.core.model import EVERY, Mode, Quota, Source, Subject, Window
from sidecar.core.quotas import OF_A_KEY

Positive = Annotated[int, Meta(ge=1, le=10**15)]
Limit = Positive | Literal["unlimited"]
ScopeList = Annotated[tuple[str, ...], Meta(min_length=1)]
EnvironmentList = Annotated[tuple[str, ...], Meta(min_length=1)]


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of the file."""

    examples: ClassVar[Mapping[str, str]] = {}
    """What to write for each key that must be there."""


class SourceEntry(Entry, frozen=True, kw_only=True):
    """A place where a credential may stand: exactly one of header (with an optional scheme), query or cookie."""

    header: OptionalToken = left_out()
    scheme: OptionalToken = left_out()
    part: Literal["username", "password"] | None = left_out(name="as")
    """With the scheme Basic: the half of `username:password` that is the credential."""
    query: str | None = left_out()
    cookie: OptionalToken = left_out()


def source_of(entry: SourceEntry, path: Path, report: Report) -> Source:
    header = entry.header
    found = [Source(kind="header", name=header, scheme=entry.scheme, part=entry.part)] if header is not None else []
    found += [Source(kind="query", name=entry.query)] if entry.query is not None else []
    found += [Source(kind="cookie", name=entry.cookie)] if entry.cookie is not None else []
    if len(found) != 1:
        raise ValueError("must have exactly one of header, query and cookie")
    if entry.query == "":
        report.problem((*path, "query"), "must not be empty: name the parameter")
    if entry.scheme is not None and entry.header is None:
        report.problem((*path, "scheme"), "only a header has a scheme")
    if entry.part is not None and (entry.scheme or "").lower() != "basic":
        report.problem((*path, "as"), "only Basic has a username and a password: write scheme: Basic, or leave it out")
    return found[0]


OneSource = Annotated[
    Source,
    made(source_of, SourceEntry),
    Meta(extra_json_schema={"oneOf": [{"required": [kind]} for kind in ("header", "query", "cookie")]}),
]
SourceList = Annotated[tuple[OneSource, ...], Meta(min_length=1)]


# Quotas.


FAILURES = "failures"
"""The name of the quota for wrong keys."""

_DAY_SECONDS = 86400


class Allowance(Entry, frozen=True, kw_only=True):
    """So many units per period."""

    examples = MappingProxyType({"limit": "`limit: 1000`", "per": "`per: hour` (minute, day, week, month, or as 30s)"})

    limit: Positive
    per: Period
    window: Window = Window.FIXED
    burst: Positive | None = left_out()

    def quota(self, name: str, by: tuple[Subject, ...], only: Literal["all", "key", "anonymous"] = "all") -> Quota:
        return Quota(
            name=name, limit=self.limit, period=self.per, window=self.window, burst=self.burst, by=by, only=only
        )


class QuotaEntry(Allowance, frozen=True, kw_only=True):
    """A named allowance, what it counts by, and for which requests."""

    by: Subject | Annotated[tuple[Subject, ...], Meta(min_length=1)] = Subject.KEY
    only: Literal["all", "key", "anonymous"] = "all"
    mode: Mode | None = left_out()


def quota_of(entry: QuotaEntry, path: Path, report: Report) -> Quota:
    """The last step of `path` is the quota's name."""
    name = str(path[-1])
    if name == FAILURES:
        report.key_problem(path, f"is the name of the quota in keys.{FAILURES}: choose another")
    by = (entry.by,) if isinstance(entry.by, Subject) else entry.by
    if len(set(by)) < len(by):
        report.problem((*path, "by"), "names something twice")
    if entry.only == "anonymous" and not OF_A_KEY.isdisjoint(by):
        message = "an anonymous request has no key, tenant or environment to count by: use by: address"
        report.problem((*path, "only"), message)
    _check_window(entry, path, report)
    return replace(entry.quota(name, by, entry.only), mode=entry.mode)


def failures_of(written: Allowance | Literal["off"], path: Path, report: Report) -> Quota | None:
    """The quota by address for wrong keys."""
    if isinstance(written, str):
        return None
    _check_window(written, path, report)
    return written.quota(FAILURES, (Subject.ADDRESS,))


def _check_window(entry: Allowance, path: Path, report: Report) -> None:
    if entry.burst is not None and entry.window is not Window.BUCKET:
        report.problem((*path, "burst"), "only a bucket has a burst: add window: bucket, or leave it out")
    if entry.window is Window.FIXED and isinstance(entry.per, int) and _DAY_SECONDS % entry.per:
        message = "a fixed window must divide a day evenly: choose such a duration, a calendar unit, or window: sliding"
        report.problem((*path, "per"), message)


NamedQuota = Annotated[Quota, made(quota_of, QuotaEntry)]


# The `keys` section.


class ImportedEntry(Entry, frozen=True, kw_only=True):
    """Keys made elsewhere: what they begin with, and how they are hashed in the store that they come from."""

    examples = MappingProxyType({"prefix": "what the keys begin with, as `prefix: old_`"})

    prefix: ForeignPrefix
    hash: ForeignHash = "sha256"
    pepper: str | None = left_out()


def foreign_keys_of(entry: ImportedEntry, path: Path, report: Report) -> ForeignKeys:
    at = (*path, "pepper")
    if entry.hash == "sha256":
        if entry.pepper is not None:
            report.problem(at, "sha256 takes no pepper: name another `hash`, or leave it out")
    elif not entry.pepper and report.sound(at):
        report.problem(at, f"{entry.hash} needs one: write pepper: ${{VARIABLE}} and set the variable")
    pepper = entry.pepper.encode("utf-8", "surrogatepass") if entry.pepper else None
    return ForeignKeys(prefix=entry.prefix, hash=entry.hash, pepper=pepper)


_FAILURES = Allowance(limit=300, per="minute")


class EnvironmentEntry(Entry, frozen=True, kw_only=True):
    """An environment: what its keys begin with, and what else it is called in paths."""

    examples = MappingProxyType({"prefix": "what its keys begin with, as `prefix: shop_live_`"})

    prefix: KeyPrefix
    aliases: tuple[Name, ...] = ()


class Prefix(str):
    """What the keys of an environment begin with, and what else the environment is called in paths."""

    __slots__ = ("aliases",)

    aliases: tuple[str, ...]


def prefix_of(written: str | EnvironmentEntry, _path: Path, _report: Report) -> Prefix:
    prefix = Prefix(written if isinstance(written, str) else written.prefix)
    prefix.aliases = () if isinstance(written, str) else written.aliases
    return prefix


OnePrefix = Annotated[str, made(prefix_of, KeyPrefix, EnvironmentEntry)]

KeyName = Annotated[
    str,
    leaf(
        matching("[!-~]{1,100}", "must be the id or the stored prefix of a key"),
        "the id or prefix of a key",
        "^[!-~]{1,100}$",
    ),
]

_REQUIRABLE = "tenant|environment|scopes|plan|expires_at"
Requirement = Annotated[
    str,
    leaf(
        matching(
            rf"(?:{_REQUIRABLE}|metadata\.[A-Za-z0-9_.-]{{1,64}})",
            f"must be {_REQUIRABLE.replace('|', ', ')} or metadata.NAME",
        ),
        "what a key must be issued with",
        rf"^(?:{_REQUIRABLE}|metadata\.[A-Za-z0-9_.-]{{1,64}})$",
    ),
]


class KeySettings(Entry, frozen=True, kw_only=True):
    """Where requests carry keys, what keys look like, and which credentials are not keys."""

    sources: SourceList = default(
        (SourceEntry(header="Authorization", scheme="Bearer"),),
        (Source(kind="header", name="Authorization", scheme="Bearer"),),
        name="from",
    )
    spaces_after_scheme: Literal["any", "one"] = "any"
    """How many may separate a scheme from the credential; of `any`, at least one."""
    environments: Annotated[Mapping[Name, OnePrefix], Meta(min_length=1)] = left_out(MappingProxyType({"live": "key_"}))
    """Environment to prefix. A key that is issued without an environment gets the first one."""
    length: Annotated[int, Meta(ge=22, le=200)] = 43
    checksum_length: Annotated[int, Meta(ge=0, le=8)] = renamed("checksum", 6)
    prefix_length: Annotated[int, Meta(ge=1, le=100)] | None = left_out()
    """Of a key, how many characters are stored readably; None is the environment's prefix and STORED_RANDOM more."""
    default_scopes: tuple[str, ...] = ()
    require: tuple[Requirement, ...] = ()
    """What a key must be issued with."""
    scopes_per_key: Annotated[int, Meta(ge=1, le=1000)] | None = left_out()
    """How many; None is any number, none included."""
    default_plan: Name | None = left_out()
    """For keys that are issued without a plan."""
    pass_through: tuple[OneSource, ...] = ()
    beside_key: Literal["remove", "keep"] = renamed("pass_through_with_key", "remove")
    """What happens to credentials that are not keys in a request with a key."""
    forward_credential: bool = False
    copies: Literal["remove", "refuse"] = "remove"
    """What happens to copies of the key elsewhere in the request."""
    cache_size: Annotated[int, Meta(ge=1, le=10**8)] = 100_000
    failures: Annotated[Quota | None, made(failures_of, Literal["off"], Allowance)] = default(
        _FAILURES, _FAILURES.quota(FAILURES, (Subject.ADDRESS,))
    )
    """Quota by address for wrong keys; None is no limit."""
    imported: tuple[Annotated[ForeignKeys, made(foreign_keys_of, ImportedEntry)], ...] = ()
    """Keys made elsewhere."""
    max_age_seconds: DurationOrOff = off(name="max_age")
    """A key that is older is due for rotation; None is never."""
    rotation_overlap_seconds: Duration = seconds("24h", name="rotation_overlap")
    retire_unused_seconds: DurationOrOff = off(name="retire_unused")
    """A replaced key that is unused for so long retires before its overlap ends; None is never."""
    observe: tuple[KeyName, ...] = ()
    """Ids or stored prefixes of keys whose refusals are only observed."""

    def stored_prefix(self, text: str) -> str:
        """What is stored readably of a key, so that people recognise it."""
        if self.prefix_length is not None:
            return text[: self.prefix_length]
        own = (len(prefix) for prefix in self.environments.values() if text.startswith(prefix))
        return text[: max(own, default=0) + STORED_RANDOM]

    @property
    def environment_aliases(self) -> Mapping[str, str]:
        """Other names of environments in paths, to their own."""
        prefixes = self.environments.items()
        return {alias: name for name, prefix in prefixes if isinstance(prefix, Prefix) for alias in prefix.aliases}

    @property
    def passing_headers(self) -> tuple[str, ...]:
        """Names of headers that may hold a credential that is not a key."""
        return tuple(source.name for source in self.pass_through if source.kind == "header")


_LEAST_RANDOM = 22
"""Base62 characters that hold at least 128 bits."""
_LEAST_UNKNOWN = 14
"""Base62 characters (more than 80 bits) that the stored, readable prefix must leave unknown."""
_LEAST_CHECKSUM = 4
_LEAST_UNUSED_SECONDS = 3600


def checked_keys(keys: KeySettings, path: Path, report: Report) -> KeySettings:
    _check_sources(keys.sources, (*path, "from"), report)
    _check_lists(keys, (*path, "from"), report)
    _check_environments(keys.environments, (*path, "environments"), report)
    _check_aliases(keys, (*path, "environments"), report)
    _check_lengths(keys, path, report)
    _check_sources(keys.pass_through, (*path, "pass_through"), report)
    for at, source in report.numbered((*path, "pass_through"), keys.pass_through):
        if source.part is not None:
            report.problem((*at, "as"), "credentials pass through whole: leave it out")
        if source.kind == "query":
            report.problem((*at, "query"), "query parameters always pass through: name a header or a cookie")
    _check_imported(keys, (*path, "imported"), report)
    if keys.max_age_seconds == 0:
        report.problem((*path, "max_age"), "must be more than 0, or off")
    if keys.retire_unused_seconds is not None and keys.retire_unused_seconds < _LEAST_UNUSED_SECONDS:
        why = "uses reach the store up to a minute late, and those of other processes later still"
        report.problem((*path, "retire_unused"), f"must be at least 1h: {why}")
    for at, name in report.numbered((*path, "observe"), keys.observe):
        if any(
            name.startswith(prefix) and len(name) >= len(prefix) + keys.length for prefix in keys.environments.values()
        ):
            report.problem(at, "is as long as a whole key: write its id or what is shown of it, and never a key")
    return keys


def _check_sources(sources: Sequence[Source], path: Path, report: Report) -> None:
    known = set()
    for at, source in report.numbered(path, sources):
        name = source.name.lower() if source.kind == "header" else source.name
        identity = (source.kind, name, (source.scheme or "").lower())
        if identity in known:
            report.problem(at, "is listed twice")
        known.add(identity)


def _check_lists(keys: KeySettings, path: Path, report: Report) -> None:
    for at, source in report.numbered(path, keys.sources):
        if source.in_list and source.scheme is not None:
            report.problem((*at, "scheme"), "a key is one of several protocols here, without a scheme: leave it out")
        if source.in_list and any(not imported.prefix for imported in keys.imported):
            report.problem(at, "keys without a prefix (keys.imported) cannot be told from the protocols beside them")


def _check_environments(environments: Mapping[str, str], path: Path, report: Report) -> None:
    for name, prefix in environments.items():
        at = (*path, name)
        if name == EVERY:
            report.key_problem(at, "'*' stands for every environment: choose another name")
        for other, others in environments.items():
            if other != name and prefix.startswith(others) and (prefix != others or other < name):
                message = "is that of" if prefix == others else "begins with that of"
                report.problem(at, f"the prefix {message} '{other}', so that a key could belong to both")


def _check_aliases(keys: KeySettings, path: Path, report: Report) -> None:
    taken = set(keys.environments)
    for name, prefix in keys.environments.items():
        for at, alias in report.numbered(
            (*path, name, "aliases"), prefix.aliases if isinstance(prefix, Prefix) else ()
        ):
            if alias in taken:
                report.problem(at, f"'{alias}' is the name of an environment already")
            taken.add(alias)


def _check_lengths(keys: KeySettings, path: Path, report: Report) -> None:
    if 0 < keys.checksum_length < _LEAST_CHECKSUM:
        report.problem((*path, "checksum"), f"must be 0 (none) or from {_LEAST_CHECKSUM} to 8")
    random = keys.length - keys.checksum_length
    if random < _LEAST_RANDOM:
        message = f"leaves {random} random characters; with this checksum it must be at least"
        report.problem((*path, "length"), f"{message} {_LEAST_RANDOM + keys.checksum_length} for 128 bits")
        return
    shortest = min(map(len, keys.environments.values()), default=0)
    longest = shortest + random - _LEAST_UNKNOWN
    if keys.prefix_length is not None and keys.prefix_length > longest:
        message = f"must be at most {longest}: what is stored must leave enough of a key unknown"
        report.problem((*path, "prefix_length"), message)


def _check_imported(keys: KeySettings, path: Path, report: Report) -> None:
    known = set()
    for at, imported in report.numbered(path, keys.imported):
        _check_imported_prefix(imported.prefix, keys, (*at, "prefix"), report)
        if imported in known:
            report.problem(at, "is listed twice")
        known.add(imported)


def _check_imported_prefix(prefix: str, keys: KeySettings, path: Path, report: Report) -> None:
    if not prefix:
        if _places(keys.sources) & _places(keys.pass_through):
            report.problem(
                path, "is empty, which takes every credential that keys.pass_through should let pass: name a prefix"
            )
        return
    for environment, own in keys.environments.items():
        if own.startswith(prefix) and own != prefix:
            report.problem(path, f"begins the prefix of keys of the environment '{environment}': write it out, '{own}'")


def _places(sources: Sequence[Source]) -> set[tuple[str, str, str]]:
    """Kinds, names and schemes, those of headers in lower case."""
    return {
        (source.kind, source.name.lower() if source.kind == "header" else source.name, (source.scheme or "").lower())
        for source in sources
    }


# Scopes and paths.


class ScopeEntry(Entry, frozen=True, kw_only=True):
    """A scope with what it includes."""

    description: str = ""
    includes: tuple[str, ...] = ()
    mode: Mode | None = left_out()


class PathsEntry(Entry, frozen=True, kw_only=True):
    """How paths are read and compared."""

    case_sensitive: bool = True
    encoded_slash: Literal["split", "keep"] = "split"
    """Whether the upstream may take %2F for a slash, or keeps it in its segment."""
    colon: Literal["verb", "plain"] = "verb"
    """Whether `{id}` takes no colon where another route has `{id}:cancel`, or a colon is like any other character."""
