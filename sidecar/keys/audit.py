"""The audit's hash chain: each row's hash covers every column of it and the hash of the row before.

A row that was changed, removed, inserted or moved breaks the chain. The head names the last row, so that rows removed
from the end are missed, too. Whoever may write the database can also compute a new chain and head: only a head that
was noted elsewhere (`sidecar audit verify` prints it) reveals that.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from json.encoder import encode_basestring_ascii
from typing import Any, Final

CHAINED: Final = ("id", "at", "actor", "source", "action", "key_id", "tenant", "before", "after")
"""The columns that a hash covers, in this order."""
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))
_PLAIN: Final[dict[type, Callable[[Any], str]]] = {
    str: encode_basestring_ascii,
    int: str,
    type(None): lambda _: "null",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last row of a chain, `id` 0 for none."""

    id: int = 0
    hash: bytes = bytes(32)

    def __str__(self) -> str:
        return f"{self.id}:{self.hash.hex()}"


def head_from(text: str) -> Head:
    """The head that `str` gave as text. Raises ValueError for any other text."""
    number, colon, digest = text.partition(":")
    if not (colon and number.isascii() and number.isdigit() and len(number) < 19 and len(digest) == 64):
        raise ValueError(f"{text!r} is not a head of an audit: it must be a number, a colon and 64 digits of a hash")
    try:
        return Head(id=int(number), hash=bytes.fromhex(digest))
    except ValueError:
        raise ValueError(
            f"{text!r} is not a head of an audit: its hash has other characters than 0-9 and a-f"
        ) from None


def link(previous: bytes, row: Sequence[Any]) -> bytes:
    """The hash of a row of CHAINED, after a row with the hash `previous`."""
    try:
        # The same text as the encoder's, in a third of the time; an import computes a million links.
        text = f"[{','.join([_PLAIN[value.__class__](value) for value in row])}]"
    except KeyError:
        text = _ENCODER.encode(row)
    return sha256(previous + text.encode()).digest()


def linked(head: Head, rows: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """Add id and hash to rows of CHAINED without their id."""
    digest = head.hash
    for number, row in enumerate(rows, head.id + 1):
        digest = link(digest, (number, *row))
        yield (number, *row, digest)


class Walk:
    """Follows a chain from its first row, and reports the first problem."""

    def __init__(self, noted: Head | None = None) -> None:
        self.head = Head()
        self.rows = 0
        self._noted = noted

    def step(self, row: Sequence[Any]) -> str | None:
        """Check the next row, CHAINED and its hash. Returns the problem, if there is one."""
        number, stored = row[0], row[-1]
        # Ids have no gaps: they are counted in the transaction that writes the row.
        if number != self.head.id + 1:
            return _missing(self.head.id + 1, number - 1)
        if stored != link(self.head.hash, row[:-1]):
            return f"row {number} was changed, or the row before it was"
        self.head = Head(id=number, hash=stored)
        self.rows += 1
        if self._noted is not None and self._noted.id == number and self._noted.hash != stored:
            return f"row {number} is not the one that was noted: the audit was rewritten"
        return None

    def end(self, recorded: Head, last_id: int) -> str | None:
        """Check the end of the chain. `recorded` is the stored head, `last_id` that of the last row."""
        if self.head.id < recorded.id:
            return _missing(self.head.id + 1, recorded.id)
        if last_id > recorded.id or self.head != recorded:
            return f"the rows after {recorded.id} were not written by the sidecar"
        if self._noted is not None and self.head.id < self._noted.id:
            return _missing(self.head.id + 1, self._noted.id)
        return None


def _missing(first: int, last: int) -> str:
    return f"row {first} was removed" if first >= last else f"rows {first} to {last} were removed"
