"""Keys from elsewhere: a file of hashes becomes keys of ours, all of them or none."""

import asyncio
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Protocol

from sidecar.keys.ports import KeyConflict
from sidecar.keys.records import Batch, NewRow, RowTemplate, RowValues, new_row
from sidecar.keys.transfer.fields import Fields, LineRules, UnfitLine, is_shown, moment
from sidecar.keys.transfer.formats import BadLine, Entry
from sidecar.keys.validation import is_metadata, is_name, is_tenant, is_writable

# Lines of an imported file as rows of the store, quickly for those that are like one before them.


_KINDS: Final = 10_000
"""Most kinds of keys to remember."""


class Rows:
    """Makes rows of fields.

    LineRules alone says what is wrong, and looks at the first line of each kind. Where nothing was wrong with it, a
    line of the same environment, scopes, plan, quotas, algorithm and beginning needs but its other fields looked at.
    """

    def __init__(self, rules: LineRules) -> None:
        self._rules = rules
        self._kinds: dict[Hashable, RowTemplate] = {}
        # The longest beginning tells all that fit: the others are beginnings of it.
        known = sorted(filter(None, rules.origin.prefixes()), key=len, reverse=True)
        self._beginning = re.compile(f"{'|'.join(map(re.escape, known))}|")

    def row_of(self, fields: Fields) -> NewRow:
        """Raises UnfitLine."""
        kind = self._kind_of(fields)
        alike = self._kinds.get(kind) if kind else None
        own = self._own(fields, alike.prefix) if alike else None
        if alike and own:
            return alike.row(own)
        key = self._rules.key_of(fields)
        if kind and len(self._kinds) < _KINDS:
            self._kinds[kind] = RowTemplate(key)
        return new_row(key)

    def _kind_of(self, fields: Fields) -> Hashable:
        """What decides on all that keys share; None for a line that needs a closer look."""
        get: Any = fields.get
        prefix, scopes, quotas = get("prefix"), get("scopes"), get("quotas")
        if not (scopes is None or scopes.__class__ is list) or not _are_limits(quotas):
            return None
        try:
            begins = None if prefix is None else self._beginning.match(prefix)[0]  # type: ignore[index]
            granted = None if scopes is None else tuple(scopes)
            limits = tuple(quotas.items()) if quotas else None
            kind = begins, granted, limits, get("environment"), get("plan"), get("algorithm")
            hash(kind)
        except TypeError:
            return None
        return kind

    def _own(self, fields: Fields, prefix: str) -> RowValues | None:
        """What a line alone says of its key, or None where that needs a closer look. `prefix` where it gives none."""
        get: Any = fields.get
        given, metadata = get("prefix"), get("metadata")
        problems: list[str] = []
        try:
            own = RowValues(
                id=self._rules.id_of(get("id"), problems),
                name=get("name"),
                prefix=prefix if given is None else given,
                digest=self._rules.digest(get("hash"), given, problems),
                tenant=get("tenant"),
                metadata={} if metadata is None else metadata,
                created_at=self._rules.created_at(get("created_at"), problems),
                expires_at=moment(get("expires_at"), "expires_at", problems),
            )
            return own if not problems and self._fits(own, prefix) else None
        except (TypeError, AttributeError):
            return None

    def _fits(self, own: RowValues, prefix: str) -> bool:
        until = own.expires_at
        return (
            is_name(own.name)
            and (own.tenant is None or is_tenant(own.tenant))
            and is_metadata(own.metadata)
            and (own.prefix is prefix or is_shown(own.prefix))
            and (until is None or (self._rules.now < until and is_writable(until)))
        )


def _are_limits(quotas: Any) -> bool:
    """Whether all are whole numbers; True, which is found as 1 is, is none."""
    return quotas is None or (quotas.__class__ is dict and all(type(limit) is int for limit in quotas.values()))


_CHUNK: Final = 2_000
"""Keys that go into the store at once."""


class Intake(Protocol):
    """Where imported keys go: one transaction, or, for a dry run, nowhere. Both raise StoreUnavailable."""

    async def stored(self, rows: Sequence[NewRow]) -> Mapping[bytes | str, str]:
        """Which digests and ids of `rows` were stored before, and the ids of the keys that have them."""

    def batch(self, rows: Sequence[NewRow]) -> Batch:
        """Rows as they are added, each with its audit row. Batches are made, on any thread, in the order of adding."""

    async def add(self, batch: Batch) -> None:
        """Raises KeyConflict where some are stored already."""


class NoIntake:
    """Where nothing is stored, and nothing goes."""

    async def stored(self, rows: Sequence[NewRow]) -> Mapping[bytes | str, str]:
        return {}

    def batch(self, rows: Sequence[NewRow]) -> Batch:
        return Batch(rows=rows)

    async def add(self, batch: Batch) -> None:
        pass


class UnfitFile(Exception):
    """The file cannot be imported, and nothing of it was. `problems` are in the order of the lines."""

    def __init__(self, problems: Iterable[BadLine]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{len(self.problems)} problems")


@dataclass(slots=True)
class _Seen:
    """What the file has given so far: hashes and ids with their lines, and what is wrong."""

    lines: dict[bytes | str, int] = field(default_factory=dict)
    problems: list[BadLine] = field(default_factory=list)
    keys: int = 0

    def wrong(self, line: int, problem: str) -> None:
        self.problems.append(BadLine(line=line, problem=problem))


async def import_keys(
    entries: Iterable[Entry | BadLine], rules: LineRules, intake: Intake, progress: Callable[[], None]
) -> int:
    """How many keys were taken in. Raises UnfitFile, after every line was looked at; what was added must not stay then.

    `progress` is called now and then.
    """
    seen, rows = _Seen(), Rows(rules)
    rest = iter(entries)

    def read() -> tuple[Sequence[int], Batch] | None:
        chunk = list(islice(rest, _CHUNK))
        fitting = _fitting(chunk, rows, seen)
        return (tuple(fitting), intake.batch(list(fitting.values()))) if chunk else None

    found = read()
    while found is not None:
        # The next lines are read on a thread while the store works on these.
        following, _ = await asyncio.gather(asyncio.to_thread(read), _take_in(*found, intake, seen))
        seen.keys += len(found[0])
        found = following
        progress()
    if seen.problems:
        raise UnfitFile(sorted(seen.problems, key=lambda bad: bad.line))
    return seen.keys


def _fitting(chunk: Sequence[Entry | BadLine], rows: Rows, seen: _Seen) -> dict[int, NewRow]:
    """The rows of the lines that are not wrong by themselves, by line."""
    fitting: dict[int, NewRow] = {}
    for entry in chunk:
        if isinstance(entry, BadLine):
            seen.problems.append(entry)
            continue
        try:
            row = rows.row_of(entry.fields)
        except UnfitLine as error:
            for problem in error.problems:
                seen.wrong(entry.line, problem)
            continue
        if _is_new(row, entry.line, seen):
            fitting[entry.line] = row
    return fitting


def _is_new(row: NewRow, line: int, seen: _Seen) -> bool:
    first_hash = seen.lines.setdefault(row.digest, line)
    first_id = seen.lines.setdefault(row.id, line)
    if first_hash != line:
        seen.wrong(line, f"hash: is that of line {first_hash}")
    if first_id != line:
        seen.wrong(line, f"id: is that of line {first_id}")
    return first_hash == first_id == line


async def _take_in(lines: Sequence[int], batch: Batch, intake: Intake, seen: _Seen) -> None:
    if not lines:
        return
    if seen.problems:
        await _tell_stored(lines, batch, intake, seen)
        return
    try:
        await intake.add(batch)
    except KeyConflict:
        if not await _tell_stored(lines, batch, intake, seen):
            raise


async def _tell_stored(lines: Sequence[int], batch: Batch, intake: Intake, seen: _Seen) -> bool:
    """Whether some were stored before."""
    stored = await intake.stored(batch.rows)
    for line, row in zip(lines, batch.rows, strict=True) if stored else ():
        if row.digest in stored:
            seen.wrong(line, f"hash: is stored already, as key {stored[row.digest]}")
        if row.id in stored:
            seen.wrong(line, f"id: key {row.id} is stored already")
    return bool(stored)
