"""Imports the keys of a file: all of them, or none."""

import asyncio
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Protocol

import msgspec

from sidecar.keys.ports import KeyConflict
from sidecar.keys.records import Batch, NewRow, RowTemplate, RowValues, new_row
from sidecar.keys.transfer.fields import Fields, InvalidLine, LineRules, moment
from sidecar.keys.transfer.formats import BadLine, Entry
from sidecar.keys.validation import is_metadata, is_name, is_tenant, is_writable

# From lines of a file to rows of the store, with a fast path for lines that resemble an earlier one.


_MAX_TEMPLATES: Final = 10_000
"""Most templates that are kept."""


class Rows:
    """Makes rows from fields.

    LineRules checks the first line of each kind and alone reports problems. If it is valid, only the remaining fields
    of other lines with the same environment, scopes, plan, quotas, algorithm and key prefix are checked.
    """

    def __init__(self, rules: LineRules) -> None:
        self._rules = rules
        self._templates: dict[Hashable, RowTemplate] = {}
        # The longest matching prefix comes first: shorter matches are prefixes of it.
        known = sorted(filter(None, rules.origin.prefixes()), key=len, reverse=True)
        self._key_prefix = re.compile(f"{'|'.join(map(re.escape, known))}|")

    def row_of(self, fields: Fields) -> NewRow:
        """Raises InvalidLine."""
        kind = self._kind_of(fields)
        template = self._templates.get(kind) if kind else None
        values = self._row_values(fields, template.prefix) if template else None
        if template and values:
            return template.row(values)
        key = self._rules.key_of(fields)
        if kind and len(self._templates) < _MAX_TEMPLATES:
            self._templates[kind] = RowTemplate(key)
        return new_row(key)

    def _kind_of(self, fields: Fields) -> Hashable:
        """Everything that determines the values shared by keys; None if LineRules must check the line."""
        get: Any = fields.get
        prefix, scopes, quotas = get("prefix"), get("scopes"), get("quotas")
        if get("enabled", True) is not True:
            return None
        if not (scopes is None or scopes.__class__ is list) or not _are_limits(quotas):
            return None
        try:
            key_prefix = None if prefix is None else self._key_prefix.match(prefix)[0]  # type: ignore[index]
            rest = "" if key_prefix is None else prefix[len(key_prefix) :]
            is_ours = rest == "" or (rest.isascii() and rest.isalnum())
            granted = None if scopes is None else tuple(scopes)
            limits = tuple(quotas.items()) if quotas else None
            kind = key_prefix, is_ours, granted, limits, get("environment"), get("plan"), get("algorithm")
            hash(kind)
        except TypeError:
            return None
        return kind

    def _row_values(self, fields: Fields, prefix: str) -> RowValues | None:
        """The values that are specific to the line; None if LineRules must check it. prefix: the default."""
        get: Any = fields.get
        given, metadata = get("prefix"), get("metadata")
        problems: list[str] = []
        try:
            values = RowValues(
                id=self._rules.id_of(get("id"), problems),
                name=get("name"),
                prefix=prefix if given is None else given,
                digest=self._rules.digest(get("hash"), given, problems),
                tenant=get("tenant"),
                metadata={} if metadata is None else metadata,
                created_at=self._rules.created_at(get("created_at"), problems),
                expires_at=moment(get("expires_at"), "expires_at", problems),
            )
            return values if not problems and self._is_valid(values, prefix) else None
        except (TypeError, AttributeError):
            return None

    def _is_valid(self, values: RowValues, prefix: str) -> bool:
        until = values.expires_at
        return (
            is_name(values.name)
            and (values.tenant is None or is_tenant(values.tenant))
            and is_metadata(values.metadata)
            and (values.prefix is prefix or self._rules.origin.may_show(values.prefix))
            and (until is None or (self._rules.now < until and is_writable(until)))
        )


def _are_limits(quotas: Any) -> bool:
    """Whether all limits are whole numbers; bool, a subclass of int, is not."""
    return quotas is None or (quotas.__class__ is dict and all(type(limit) is int for limit in quotas.values()))


_CHUNK: Final = 20_000
"""Keys that go into the store at once: with many, each costs less."""


class Intake(Protocol):
    """Stores imported keys in one transaction, or discards them in a dry run. Raises StoreUnavailable."""

    async def begin(self) -> None:
        """Begin the transaction, in which no other process can change a key. To be called before `batch` and `add`."""

    async def stored(self, rows: Sequence[NewRow]) -> Mapping[bytes | str, str]:
        """The digests and ids of `rows` that are already stored, each with the id of its key."""

    def batch(self, rows: Sequence[NewRow]) -> Batch:
        """Rows with their audit rows. Batches may be made on any thread, but in the order in which they are added."""

    async def add(self, batch: Batch) -> None:
        """Raises KeyConflict if a key is already stored."""


class NoIntake:
    """The intake of a dry run without a store."""

    async def begin(self) -> None:
        pass

    async def stored(self, rows: Sequence[NewRow]) -> Mapping[bytes | str, str]:
        return {}

    def batch(self, rows: Sequence[NewRow]) -> Batch:
        return Batch(rows=rows)

    async def add(self, batch: Batch) -> None:
        pass


class InvalidFile(Exception):
    """The file is not valid, and nothing was imported. `problems` are in the order of the lines."""

    def __init__(self, problems: Iterable[BadLine]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{len(self.problems)} problems")


@dataclass(slots=True)
class _State:
    """The lines read so far: their hashes, ids and problems."""

    lines: dict[bytes | str, int] = field(default_factory=dict)
    problems: list[BadLine] = field(default_factory=list)
    keys: int = 0

    def add_problem(self, line: int, problem: str) -> None:
        self.problems.append(BadLine(line=line, problem=problem))


async def import_keys(
    entries: Iterable[Entry | BadLine], rules: LineRules, intake: Intake, progress: Callable[[int], None]
) -> int:
    """Import the keys, and return their number. Raises InvalidFile after the last line; the caller must then roll back.

    `progress` is called from time to time, with the number of keys that were read so far.
    """
    state, chunks = _State(), []
    for chunk in _checked(entries, Rows(rules), state):
        chunks.append(chunk)
        progress(len(state.lines) // 2)
        await asyncio.sleep(0)
    if state.problems:
        for chunk in chunks:
            await _report_stored(*_CHUNKS.decode(chunk), intake, state)
    elif chunks:
        await intake.begin()
        await _add_all(chunks, intake, state)
    if state.problems:
        raise InvalidFile(sorted(state.problems, key=lambda bad: bad.line))
    return state.keys


_CHUNKS: Final = msgspec.msgpack.Decoder(tuple[list[int], list[NewRow]])


def _checked(entries: Iterable[Entry | BadLine], rows: Rows, state: _State) -> Iterator[bytes]:
    """The valid rows with their lines, in chunks of MessagePack, which takes a fraction of the memory.

    All lines are read before any key is added: a file may be long, and come from a pipe that stalls, and nobody could
    revoke a key meanwhile.
    """
    rest = iter(entries)
    while chunk := list(islice(rest, _CHUNK)):
        if valid := _valid_rows(chunk, rows, state):
            yield msgspec.msgpack.encode((list(valid), list(valid.values())))


async def _add_all(chunks: Iterable[bytes], intake: Intake, state: _State) -> None:
    waiting = iter(chunks)

    def made() -> tuple[Sequence[int], Batch] | None:
        if (chunk := next(waiting, None)) is None:
            return None
        lines, rows = _CHUNKS.decode(chunk)
        return lines, intake.batch(rows)

    found = made()
    while found is not None:
        # The next batch is made on a thread while the store works on this one.
        following, _ = await asyncio.gather(asyncio.to_thread(made), _add_batch(*found, intake, state))
        state.keys += len(found[0])
        found = following


def _valid_rows(chunk: Sequence[Entry | BadLine], rows: Rows, state: _State) -> dict[int, NewRow]:
    """The rows of the valid lines, by line."""
    valid: dict[int, NewRow] = {}
    for entry in chunk:
        if isinstance(entry, BadLine):
            state.problems.append(entry)
            continue
        try:
            row = rows.row_of(entry.fields)
        except InvalidLine as error:
            for problem in error.problems:
                state.add_problem(entry.line, problem)
            continue
        if _is_new(row, entry.line, state):
            valid[entry.line] = row
    return valid


def _is_new(row: NewRow, line: int, state: _State) -> bool:
    first_hash = state.lines.setdefault(row.digest, line)
    first_id = state.lines.setdefault(row.id, line)
    if first_hash != line:
        state.add_problem(line, f"hash: is the same as on line {first_hash}")
    if first_id != line:
        state.add_problem(line, f"id: is the same as on line {first_id}")
    return first_hash == first_id == line


async def _add_batch(lines: Sequence[int], batch: Batch, intake: Intake, state: _State) -> None:
    if state.problems:
        await _report_stored(lines, batch.rows, intake, state)
        return
    try:
        await intake.add(batch)
    except KeyConflict:
        if not await _report_stored(lines, batch.rows, intake, state):
            raise


async def _report_stored(lines: Sequence[int], rows: Sequence[NewRow], intake: Intake, state: _State) -> bool:
    """Report the keys that are stored already; whether there are any."""
    stored = await intake.stored(rows)
    for line, row in zip(lines, rows, strict=True) if stored else ():
        if row.digest in stored:
            state.add_problem(line, f"hash: is stored already, as key {stored[row.digest]}")
        if row.id in stored:
            state.add_problem(line, f"id: key {row.id} is stored already")
    return bool(stored)
