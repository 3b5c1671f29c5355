"""Keys as code: the records of a file, and how the keys of a store differ from them.

A record has the fields of an import, as `sidecar keys issue --offline` prints them. It is complete: the key does not
have what the record leaves out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from operator import attrgetter
from typing import Final

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.lifecycle import new_id
from sidecar.keys.transfer.fields import InvalidLine, LineRules
from sidecar.keys.transfer.formats import BadLine, Entry
from sidecar.keys.transfer.importer import InvalidFile
from sidecar.keys.transitions import with_status

_SALT: Final = b"sidecar: the id of a record without one"
_SAID: Final = attrgetter(
    "status", "name", "tenant", "environment", "scopes", "plan", "quotas", "metadata", "expires_at"
)
"""What a record says about a key, besides its hash and prefix."""
_FIXED: Final = attrgetter("prefix", "digest", "algorithm")
_PLAINTEXT: Final = "key: is the key itself, which does not belong in a file: write its hash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A key in a file, and the line on which it begins. given: the fields that are present."""

    line: int
    key: ApiKey
    given: frozenset[str]


def records_of(entries: Iterable[Entry | BadLine], rules: LineRules) -> Sequence[Record]:
    """Every key of a file. Raises InvalidFile with every problem; an expired key is not a problem."""
    found: list[Record] = []
    problems: list[BadLine] = []
    lines: dict[bytes | str, int] = {}
    for entry in entries:
        try:
            if isinstance(entry, BadLine):
                raise InvalidLine([entry.problem])
            record = _record_of(entry, rules)
            if twins := list(_twins(record, lines)):
                raise InvalidLine(twins)
            found.append(record)
        except InvalidLine as error:
            problems += [BadLine(line=entry.line, problem=problem) for problem in error.problems]
    if problems:
        raise InvalidFile(problems)
    return found


def _record_of(entry: Entry, rules: LineRules) -> Record:
    fields = entry.fields
    if "key" in fields:
        raise InvalidLine([_PLAINTEXT])
    key = rules.key_of(fields, ended=True)
    given = frozenset(name for name, value in fields.items() if value is not None)
    return Record(line=entry.line, key=key if "id" in given else replace(key, id=id_from(key.digest)), given=given)


def id_from(digest: bytes) -> str:
    """The id of a record without one: the same for the same hash in every process, without revealing the hash."""
    number = int.from_bytes(sha256(_SALT + digest).digest(), "big")
    return new_id(lambda most: number % most)


def _twins(record: Record, lines: dict[bytes | str, int]) -> Iterator[str]:
    for name, value in (("hash", record.key.digest), ("id", record.key.id)):
        first = lines.get(value)
        if first is None:
            lines[value] = record.line
        elif name == "hash" or "id" in record.given:
            # A line of YAML may hold several records, and an alias is on the line of what it repeats.
            yield f"{name}: is the same as " + (
                f"on line {first}" if first != record.line else "in an earlier record of this line"
            )


Changed = tuple[ApiKey, ApiKey]
"""A key before and after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What must change for a store to match a file."""

    added: Sequence[ApiKey] = ()
    changed: Sequence[Changed] = ()
    surplus: Sequence[ApiKey] = ()
    """Keys that the file does not have."""
    revoked: Sequence[ApiKey] = ()
    """Keys that are in the file, but stay revoked."""
    problems: Sequence[BadLine] = ()
    """Records that cannot be applied."""

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.added or self.changed or self.surplus)


def difference(records: Iterable[Record], stored: Iterable[ApiKey], *, at: int, surplus: bool = False) -> Difference:
    """How keys differ from a file, for a change at `at` (microseconds).

    A key belongs to the record with its id, or with its hash if the record has no id. It keeps its hash, its time of
    issue and its later history; a revoked key stays revoked. surplus: whether to include other keys.
    """
    known = {key.id: key for key in stored}
    by_digest = {key.digest: key for key in known.values()}
    keys = dict(known)
    added: list[ApiKey] = []
    changed: list[Changed] = []
    revoked: list[ApiKey] = []
    problems: list[BadLine] = []
    for record in records:
        key = known.get(record.key.id) or (None if "id" in record.given else by_digest.get(record.key.digest))
        if problem := _misfit(record, key, by_digest):
            problems.append(BadLine(line=record.line, problem=problem))
        elif key is not None and key.id not in keys:
            problems.append(BadLine(line=record.line, problem=f"is key {key.id}, which is on an earlier line"))
        elif key is None:
            added.append(record.key)
        elif key.status is KeyStatus.REVOKED:
            revoked.append(key)
        elif (after := _after(key, record, at)) != key:
            changed.append((key, after))
        if key is not None:
            keys.pop(key.id, None)
    rest = [key for key in keys.values() if key.status is not KeyStatus.REVOKED] if surplus else ()
    return Difference(added=added, changed=changed, surplus=rest, revoked=revoked, problems=problems)


def _misfit(record: Record, key: ApiKey | None, by_digest: Mapping[bytes, ApiKey]) -> str:
    """Why the record cannot be applied; empty if it can.

    A key that was rehashed at its first use has another hash and algorithm than the file.
    """
    twin = by_digest.get(record.key.digest)
    if twin is not None and key is not twin:
        return f"hash: is stored already, as key {twin.id}"
    if key is not None and key.digest != record.key.digest and key.algorithm == record.key.algorithm:
        return f"hash: key {key.id} is stored with another one: a new secret needs a new id"
    return ""


def _after(key: ApiKey, record: Record, at: int) -> ApiKey:
    wanted = record.key
    # Most keys of a large file are unchanged, and this takes a twentieth of the time of rebuilding them.
    if _SAID(key) == _SAID(wanted) and (key.prefix == wanted.prefix or "prefix" not in record.given):
        return key
    return replace(
        with_status(key, wanted.status, at),
        name=wanted.name,
        prefix=wanted.prefix if "prefix" in record.given else key.prefix,
        tenant=wanted.tenant,
        environment=wanted.environment,
        scopes=wanted.scopes,
        plan=wanted.plan,
        quotas=wanted.quotas,
        metadata=wanted.metadata,
        expires_at=wanted.expires_at,
    )


def mirrored(records: Iterable[Record], stored: Iterable[ApiKey], *, at: int) -> Difference:
    """As `difference`, but the file alone decides: hashes change, too, and every other key is surplus."""
    keys = {key.id: key for key in stored}
    added: list[ApiKey] = []
    changed: list[Changed] = []
    for record in records:
        key = keys.pop(record.key.id, None)
        if key is None:
            added.append(record.key)
            continue
        after = _after(key, record, at)
        if _FIXED(after) != _FIXED(record.key):
            created_at = record.key.created_at if "created_at" in record.given else key.created_at
            own = dict(zip(("prefix", "digest", "algorithm"), _FIXED(record.key), strict=True))
            after = replace(after, **own, created_at=created_at)
        if after != key:
            changed.append((key, after))
    return Difference(added=added, changed=changed, surplus=list(keys.values()))
