"""The `keys` section."""

from collections.abc import Mapping, Sequence
from sidecar.config.document import KeysEntry, SourceEntry, given
from sidecar.config.settings import KeySettings
from sidecar.config.errors import Path, Report
from sidecar.config.build.policy import failures_of
from sidecar.config.build.policy import check_granted
from sidecar.core.units import parse_duration
from sidecar.core.model import EVERY, Source
from sidecar.core.scopes import Catalogue
from collections.abc import Iterable
from sidecar.config.document import ImportedEntry, KeysEntry, SourceEntry, given
from sidecar.config.errors import Path, Report
from sidecar.core.apikey import ForeignKeys



# The `keys.imported` section: keys made elsewhere.


_SECTION = ("keys", "imported")


def imported_of(entry: KeysEntry, report: Report) -> tuple[ForeignKeys, ...]:
    found: dict[ForeignKeys, None] = {}
    for at, imported in report.numbered(_SECTION, entry.imported):
        _check_prefix(imported.prefix, at, entry, report)
        _check_pepper(imported, at, report)
        pepper = given(imported.pepper)
        keys = ForeignKeys(
            prefix=imported.prefix,
            hash=imported.hash,
            pepper=pepper.encode("utf-8", "surrogatepass") if pepper else None,
        )
        if keys in found:
            report.problem(at, "stands here twice")
        found[keys] = None
    return tuple(found)


def _check_prefix(prefix: str, at: Path, entry: KeysEntry, report: Report) -> None:
    path = (*at, "prefix")
    if not prefix:
        if _headers(entry.from_) & _headers(entry.pass_through):
            report.problem(path, "is empty, so that nothing could pass where keys.pass_through lets it: name a prefix")
        return
    for environment, own in entry.environments.items():
        if prefix.startswith(own) or own.startswith(prefix):
            report.problem(path, f"overlaps the prefix of keys of the environment '{environment}'")


def _check_pepper(imported: ImportedEntry, at: Path, report: Report) -> None:
    path = (*at, "pepper")
    if imported.hash == "sha256":
        if given(imported.pepper) is not None:
            report.problem(path, "sha256 has none: say in `hash` how the pepper is used, or leave it out")
    elif not given(imported.pepper) and report.sound(path):
        report.problem(path, f"{imported.hash} needs one: write pepper: ${{VARIABLE}} and set the variable")


def _headers(sources: Iterable[SourceEntry]) -> set[tuple[str, str]]:
    """Folded names and schemes."""
    headers = ((given(source.header), given(source.scheme) or "") for source in sources)
    return {(name.lower(), scheme.lower()) for name, scheme in headers if name is not None}

_LEAST_RANDOM = 22
"""Base62 characters that hold at least 128 bits."""
_LEAST_UNKNOWN = 14
"""Base62 characters (more than 80 bits) that the stored, readable prefix must leave unknown."""
_LEAST_CHECKSUM = 4
_LEAST_UNUSED_SECONDS = 3600


def keys_of(entry: KeysEntry, catalogue: Catalogue, report: Report) -> KeySettings:
    _check_environments(entry.environments, report)
    _check_lengths(entry, report)
    check_granted(entry.default_scopes, ("keys", "default_scopes"), catalogue, report)
    pass_through = _sources(entry.pass_through, ("keys", "pass_through"), report)
    for at, source in report.numbered(("keys", "pass_through"), entry.pass_through):
        if given(source.query) is not None:
            report.problem((*at, "query"), "query parameters are never held back: name a header or a cookie")
    return KeySettings(
        sources=_sources(entry.from_, ("keys", "from"), report),
        environments=entry.environments,
        length=entry.length,
        checksum_length=entry.checksum,
        prefix_length=entry.prefix_length,
        default_scopes=entry.default_scopes,
        pass_through=pass_through,
        forward_credential=entry.forward_credential,
        cache_size=entry.cache_size,
        failures=failures_of(entry.failures, ("keys", "failures"), report),
        imported=imported_of(entry, report),
        max_age_seconds=_age_seconds(entry.max_age, report),
        rotation_overlap_seconds=parse_duration(entry.rotation_overlap),
        retire_unused_seconds=_unused_seconds(entry.retire_unused, report),
    )


def _age_seconds(written: str, report: Report) -> float | None:
    if written == "off":
        return None
    seconds = parse_duration(written)
    if not seconds:
        report.problem(("keys", "max_age"), "must be more than 0, or off")
    return seconds


def _unused_seconds(written: str, report: Report) -> float | None:
    if written == "off":
        return None
    seconds = parse_duration(written)
    if seconds < _LEAST_UNUSED_SECONDS:
        why = "uses reach the store up to a minute late, and those of other processes later still"
        report.problem(("keys", "retire_unused"), f"must be at least 1h: {why}")
    return seconds


def _sources(entries: Sequence[SourceEntry], path: Path, report: Report) -> tuple[Source, ...]:
    sources: dict[tuple[str, str, str], Source] = {}
    for at, entry in report.numbered(path, entries):
        source = _source(entry, at, report)
        if source is None:
            continue
        folded = source.name.lower() if source.kind == "header" else source.name
        identity = (source.kind, folded, (source.scheme or "").lower())
        if identity in sources:
            report.problem(at, "stands here twice")
        sources[identity] = source
    return tuple(sources.values())


def _source(entry: SourceEntry, path: Path, report: Report) -> Source | None:
    header, query, cookie = given(entry.header), given(entry.query), given(entry.cookie)
    if sum(name is not None for name in (header, query, cookie)) != 1:
        if report.sound(path):
            report.problem(path, "must name exactly one of header, query and cookie")
        return None
    if header is not None:
        return Source(kind="header", name=header, scheme=given(entry.scheme))
    if given(entry.scheme) is not None:
        report.problem((*path, "scheme"), "only a header has a scheme")
    return Source(kind="query", name=query) if query is not None else Source(kind="cookie", name=cookie or "")


def _check_environments(environments: Mapping[str, str], report: Report) -> None:
    for name, prefix in environments.items():
        path = ("keys", "environments", name)
        if name == EVERY:
            report.key_problem(path, "'*' stands for every environment: choose another name")
        for other, others in environments.items():
            if other != name and prefix.startswith(others) and (prefix != others or other < name):
                message = "is that of" if prefix == others else "begins with that of"
                report.problem(path, f"the prefix {message} '{other}', so that a key could belong to both")


def _check_lengths(entry: KeysEntry, report: Report) -> None:
    if 0 < entry.checksum < _LEAST_CHECKSUM:
        report.problem(("keys", "checksum"), f"must be 0 (none) or from {_LEAST_CHECKSUM} to 8")
    random = entry.length - entry.checksum
    if random < _LEAST_RANDOM:
        message = f"leaves {random} random characters; with this checksum it must be at least"
        report.problem(("keys", "length"), f"{message} {_LEAST_RANDOM + entry.checksum} for 128 bits")
        return
    shortest = min(map(len, entry.environments.values()), default=0)
    longest = shortest + random - _LEAST_UNKNOWN
    if entry.prefix_length > longest:
        message = f"must be at most {longest}: what is stored must leave enough of a key unknown"
        report.problem(("keys", "prefix_length"), message)
