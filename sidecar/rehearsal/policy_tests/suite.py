"""A file of policy tests with every name resolved: cases that a judge can run one by one."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from msgspec import Struct, structs

from sidecar.config.build.config import Config
from sidecar.config.decoder import decode
from sidecar.config.errors import ConfigError, Path, Report, did_you_mean
from sidecar.config.load import Variables, read_file
from sidecar.config.yaml_tree import MOST_TABLE_BYTES, read_table
from sidecar.core.apikey import Hasher, beginning, looks_secret
from sidecar.core.model import Headers, RequestHead
from sidecar.core.units import counted
from sidecar.gate.explain import presenting, with_key_in_query
from sidecar.keys.validation import InvalidKey
from sidecar.rehearsal.policy_tests.document import (
    NONE,
    RESERVED,
    CaseEntry,
    DefaultsEntry,
    Document,
    ExpectEntry,
    HeaderValues,
    KeyEntry,
    RequestLine,
    TableEntry,
)
from sidecar.rehearsal.policy_tests.document import expect_of as expectation_of
from sidecar.rehearsal.policy_tests.keys import KeyMaker, MadeKey

KEY_TEXT: Final = "{key}"
"""The placeholder for the key's text, in a target or a header."""
DEFAULT_UPSTREAM: Final = "default"
_QUOTED: Final = re.compile("'[^']*'|\"[^\"]*\"")
_CLIENT: Final = "203.0.113.1"
"""An address for documentation (RFC 5737)."""
_NO_KEY: Final = MadeKey(text="", key=None)
_NO_DEFAULTS: Final = DefaultsEntry()


class Case(Struct, frozen=True, kw_only=True, gc=False):
    """A request and its expected outcome. where: `file:line`. after: seconds that pass before the request."""

    name: str
    group: str
    where: str
    head: RequestHead
    key: MadeKey
    expect: ExpectEntry
    times: int = 1
    used: Mapping[str, int]
    after: float = 0.0
    leads: bool = False
    """Whether other cases follow it."""
    follows: bool = False
    """Whether it starts with the counts and the time of the previous case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The cases of one file, in its order. now: microseconds."""

    path: str
    config: Config
    now: int
    keys: Sequence[MadeKey]
    cases: Sequence[Case]


def read_suite(
    path: str,
    *,
    config_path: str | None,
    otherwise: str | None = None,
    load: Callable[[str, Mapping[str, str]], Config],
    environ: Mapping[str, str],
) -> Suite:
    """Reads the file at `path`. Raises ConfigError with every problem, of the file or of its configuration.

    config_path: overrides the configuration that the file names. otherwise: used if the file names none. load: reads a
    configuration with these `${VAR}`. No problem repeats the value of a variable, or what may be a key.
    """
    variables = Variables(environ)
    try:
        return _read(path, config_path, otherwise, lambda name, own: load(name, {**environ, **own}), variables)
    except ConfigError as error:
        raise ConfigError(map(variables.without_secrets, error.problems)) from None


def _read(
    path: str,
    config_path: str | None,
    otherwise: str | None,
    load: Callable[[str, Mapping[str, str]], Config],
    environ: Variables,
) -> Suite:
    root = read_table(read_file(path, most=MOST_TABLE_BYTES), path)
    report = Report(root.place)
    document = decode(root, Document, report, environ) or Document()
    if not (document.cases or document.groups or document.tables) and report.sound(()):
        report.problem((), "has no cases: write `cases:` with a list such as `- GET /v1/streams as reader: allow`")
    wanted = config_path or _beside(path, document.config) or otherwise
    if wanted is None:
        report.problem(
            (), "names no configuration: write `config: FILE`, from the folder of this file, or give -c FILE"
        )
        report.close()
    try:
        config = load(str(wanted), document.variables)
    except ConfigError:
        report.close()
        raise
    suite = _Resolver(config, document, report).suite(path)
    report.close()
    return suite


def _beside(path: str, config: str | None) -> str | None:
    return None if config is None else os.path.normpath(os.path.join(os.path.dirname(path), config))


class _Resolver:
    def __init__(self, config: Config, document: Document, report: Report) -> None:
        self._config, self._document, self._report = config, document, report
        self._maker = KeyMaker(config, Hasher((), config.keys.imported), document.now)
        self._routes = frozenset((NONE, *(route.name for route in config.routes)))
        self._upstreams = frozenset((DEFAULT_UPSTREAM, *config.upstreams))
        self._keys: dict[str, MadeKey] = {}
        self._inline: list[MadeKey] = []
        self._presenting: dict[str, Headers] = {}

    def suite(self, path: str) -> Suite:
        self._make_keys()
        cases = tuple(self._cases())
        keys = (*self._keys.values(), *self._inline)
        return Suite(path=path, config=self._config, now=self._document.now, keys=keys, cases=cases)

    # Keys.

    def _make_keys(self) -> None:
        for name, entry in self._document.keys.items():
            path: Path = ("keys", name)
            if name in RESERVED:
                self._report.key_problem(path, f"is {RESERVED[name]} in every file: choose another name")
            elif (made := self._made(name, entry, path)) is not None:
                self._keys[name] = made
        for kind in RESERVED:
            self._keys[kind] = _NO_KEY if kind == NONE else self._maker.wrong(kind)

    def _made(self, name: str, entry: KeyEntry, path: Path) -> MadeKey | None:
        try:
            made = self._maker.make(name, entry)
        except InvalidKey as invalid:
            for problem in invalid.problems:
                at = getattr(problem, "path", ())
                self._report.problem((*path, *at[:1]), _QUOTED.sub(self._shortened, str(problem)))
            return None
        for other in (*self._keys.values(), *self._inline):
            if other.key is not None and made.key is not None and _clash(made.key.id, other.key.id, made, other):
                self._report.key_problem(path, f"has the id or the secret of the key {other.key.id}")
        return made

    def _shortened(self, quoted: re.Match[str]) -> str:
        """Only the beginning of an unknown name: it may be a secret that was pasted into the wrong place."""
        name, config = quoted[0][1:-1], self._config
        known = (config.catalogue.scopes, config.plans, config.quotas, config.keys.environments)
        return quoted[0] if any(name in names for names in known) else repr(beginning(name))

    def _key(self, name: str, path: Path, *, of_key: bool = False) -> MadeKey:
        """of_key: whether the name is in the key at `path`, not in its value."""
        if name in self._keys:
            return self._keys[name]
        known = [*self._document.keys, *RESERVED]
        if name not in self._document.keys:
            shown = did_you_mean(name, known) or f" (known are {', '.join(known[:20])})"
            report = self._report.key_problem if of_key else self._report.problem
            named = f"names a key {name!r} that `keys` does not have"
            if looks_secret(name):
                named = "looks like an API key, and must be one of the names in `keys`"
            report(path, f"{named}{shown}")
        return _NO_KEY

    # Cases.

    def _cases(self) -> Iterator[Case]:
        document, report = self._document, self._report
        base = self._merged(_NO_DEFAULTS, document.defaults, ("defaults",))
        for path, entry in report.numbered(("cases",), document.cases or ()):
            yield self._case(entry, path, base)
        for at, group in report.numbered(("groups",), document.groups):
            defaults = self._merged(base, group, at)
            for place, (path, entry) in enumerate(report.numbered((*at, "cases"), group.cases)):
                found = self._case(entry, path, defaults, group.name)
                yield structs.replace(found, leads=place == 0, follows=place > 0) if group.sequence else found
        for at, table in report.numbered(("tables",), document.tables):
            yield from self._table(table, at, base)

    def _merged(self, base: DefaultsEntry, over: DefaultsEntry, path: Path) -> DefaultsEntry:
        if over.key is not None:
            self._key(over.key, (*path, "key"))
        self._check_peer(over.peer, path)
        return DefaultsEntry(
            key=base.key if over.key is None else over.key,
            headers=_over(base.headers, over.headers),
            peer=base.peer if over.peer is None else over.peer,
        )

    def _case(self, entry: CaseEntry, path: Path, base: DefaultsEntry, group: str = "") -> Case:
        key = self._key_of(entry, path, base)
        headers, peer = _over(base.headers, entry.headers), base.peer
        if entry.peer is not None:
            self._check_peer(peer := entry.peer, path)
        if entry.used:
            self._check_quotas(entry.used, (*path, "used"))
        self._check(entry.expect, path)
        line: RequestLine = entry.request
        if not key.text and (KEY_TEXT in line.target or any(KEY_TEXT in value for _, value in _each(entry.headers))):
            self._report.problem(path, f"{KEY_TEXT} is the text of the key, and this request has none")
        return Case(
            name=entry.name or line.text,
            group=group,
            where=self._report.where(path),
            head=self._head(line, key, headers, peer),
            key=key,
            expect=entry.expect,
            times=entry.times,
            used=entry.used,
            after=entry.after,
        )

    def _key_of(self, entry: CaseEntry, path: Path, base: DefaultsEntry) -> MadeKey:
        line: RequestLine = entry.request
        if line.key is not None:
            if entry.key is not None:
                self._report.problem((*path, "key"), f"the request says `as {line.key}`: keep one of them")
            full = "request" in self._report.names(path)
            return self._key(line.key, (*path, "request") if full else path, of_key=not full)
        if isinstance(entry.key, KeyEntry):
            name = f"of_line_{self._report.where(path).rpartition(':')[2]}"
            made = self._made(name, entry.key, (*path, "key"))
            self._inline += [made] if made is not None else []
            return made or _NO_KEY
        if entry.key is not None:
            return self._key(entry.key, (*path, "key"))
        return _NO_KEY if base.key is None else self._keys.get(base.key, _NO_KEY)

    def _table(self, table: TableEntry, at: Path, base: DefaultsEntry) -> Iterator[Case]:
        columns = [(name, self._key(name, path)) for path, name in self._report.numbered((*at, "keys"), table.keys)]
        for line, row in table.requests.items():
            path: Path = (*at, "requests", line.text)
            words = row if isinstance(row, tuple) else (row,) * len(columns)
            if line.key is not None:
                self._report.key_problem(path, "the columns say which key: leave out `as …`")
            if len(words) != len(columns):
                number = f"{counted(len(words), 'word')} for {counted(len(columns), 'key')}"
                self._report.problem(path, f"has {number}: write one word for each of `keys`, or one alone for all")
            for (name, key), word in zip(columns, words, strict=False):
                yield Case(
                    name=f"{line.text} as {name}",
                    group=table.name,
                    where=self._report.where(path),
                    head=self._head(line, key, base.headers, base.peer),
                    key=key,
                    expect=expectation_of(word, path, self._report),
                    used={},
                )

    # Requests.

    def _head(self, line: RequestLine, key: MadeKey, headers: HeaderValues, peer: str | None) -> RequestHead:
        target, fields = line.target, self._fields(headers, key)
        if key.text and (KEY_TEXT in target or any(KEY_TEXT in value for _, value in _each(headers))):
            target = target.replace(KEY_TEXT, key.text)
        elif key.text:
            target = with_key_in_query(self._config, target, key.text)
            fields += self._of_key(key)
        return RequestHead(method=line.method, target=target, headers=fields, peer=_CLIENT if peer is None else peer)

    def _of_key(self, key: MadeKey) -> Headers:
        found = self._presenting.get(key.text)
        if found is None:
            found = self._presenting[key.text] = presenting(self._config, key.text)
        return found

    # Expectations.

    def _check(self, expect: ExpectEntry, path: Path) -> None:
        """Expectations from a single word need no check."""
        if expect.route is None and expect.takes is None and not expect.remaining and expect.forwarded is None:
            return
        at = (*path, "expect") if "expect" in self._report.names(path) else path
        if expect.route is not None and expect.route not in self._routes:
            near = did_you_mean(expect.route, self._routes) or "; write it as there, or `none`"
            self._report.problem((*at, "route"), f"the configuration has no such route{near}")
        if expect.takes is not None:
            self._check_quotas(expect.takes, (*at, "takes"))
        self._check_quotas(expect.remaining, (*at, "remaining"))
        upstream = expect.forwarded.upstream if expect.forwarded is not None else None
        if upstream is not None and upstream not in self._upstreams:
            near = did_you_mean(upstream, self._upstreams)
            self._report.problem((*at, "forwarded", "upstream"), f"no such upstream: {upstream!r}{near}")

    def _check_quotas(self, names: Sequence[str] | Mapping[str, int], path: Path) -> None:
        for name in names:
            if name not in self._config.quotas:
                at = (*path, name) if isinstance(names, Mapping) else path
                near = did_you_mean(name, self._config.quotas)
                self._report.problem(at, f"the configuration has no quota {name!r}{near}")

    def _check_peer(self, peer: str | None, path: Path) -> None:
        try:
            if peer:
                ip_address(peer)
        except ValueError:
            self._report.problem((*path, "peer"), "must be an address such as 203.0.113.7, or empty for a Unix socket")

    def _fields(self, headers: HeaderValues, key: MadeKey) -> Headers:
        """Without a key, headers that would contain it are left out: a default only says how keys are sent."""
        if not headers:
            return _HOST
        fields = tuple(
            (name.encode(), value.replace(KEY_TEXT, key.text).encode("utf-8", "surrogateescape"))
            for name, value in _each(headers)
            if key.text or KEY_TEXT not in value
        )
        return fields if any(name.lower() == b"host" for name, _ in fields) else (*_HOST, *fields)


_HOST: Final[Headers] = ((b"Host", b"localhost"),)


def _each(headers: HeaderValues) -> Iterator[tuple[str, str]]:
    for name, values in headers.items():
        for value in (values,) if isinstance(values, str) else values:
            yield name, value


def _clash(id: str, other_id: str, made: MadeKey, other: MadeKey) -> bool:
    return id == other_id or made.text == other.text


def _over(base: HeaderValues, over: HeaderValues) -> HeaderValues:
    """`base`, with the headers of `over` replacing its own of the same names."""
    if not over or not base:
        return over or base
    names = {name.lower() for name in over}
    return {**{name: values for name, values in base.items() if name.lower() not in names}, **over}
