"""The file formats of keys, JSON lines and CSV: reads lines into fields, and writes keys as lines."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, Final, Literal

import msgspec

from sidecar.core.model import ApiKey
from sidecar.keys.records import PUBLIC_FIELDS, PublicKey, public_fields

FileFormat = Literal["jsonl", "csv"]

FIELDS: Final = (
    "id",
    "hash",
    "algorithm",
    "prefix",
    "name",
    "tenant",
    "environment",
    "scopes",
    "plan",
    "quotas",
    "metadata",
    "expires_at",
    "created_at",
    "enabled",
)
NEEDED: Final = ("hash", "name")
MAX_LINE_BYTES: Final = 65_536
_MOST_UNKNOWN: Final = 10
_BOM: Final = b"\xef\xbb\xbf"
_NAME: Final = re.compile(r"[A-Za-z_]{1,20}")
_NOT_UTF8: Final = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` turns bytes that are not UTF-8 into."""
_SEPARATOR_LINE: Final = re.compile(r"sep=([,;\t])\s*", re.IGNORECASE)
"""A first line that tells spreadsheets the separator of cells."""
_QUOTA: Final = re.compile(r"([^=\s]+)=([0-9]{1,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A problem of a line, counted from 1. The text holds no hash, and nothing that may be a key."""

    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.line}: {self.problem}"


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fields of one key as written, and the line on which it begins."""

    line: int
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for the value of a cell that could not be read."""

    problem: str


class KeyFile:
    """The entries and bad lines of `file`, in order. `read_bytes` counts the bytes read so far.

    JSON lines: one object on each line. CSV, with `,`, `;` or tabs between cells: a header row of field names; scopes
    and quotas (`name=limit`) are separated by spaces, metadata is a JSON object, and an empty cell is a missing field.
    any_columns: columns may have any name, as with AWS; `name` and `key` are required.
    """

    def __init__(self, file: BinaryIO, form: FileFormat, *, any_columns: bool = False) -> None:
        self._file = file
        self._any_columns = any_columns
        self._form = form
        self._number = 0
        self._overlong: list[int] = []
        self.read_bytes = 0

    def __iter__(self) -> Iterator[Entry | BadLine]:
        return self._json_lines() if self._form == "jsonl" else self._csv_rows()

    def _lines(self) -> Iterator[bytes]:
        """Lines with their line ends. An overlong line is recorded, and yields an empty one."""
        while line := self._file.readline(MAX_LINE_BYTES + 1):
            self._number += 1
            self.read_bytes += len(line)
            if len(line) > MAX_LINE_BYTES:
                self._overlong.append(self._number)
                while line and not line.endswith(b"\n"):
                    line = self._file.readline(MAX_LINE_BYTES)
                    self.read_bytes += len(line)
                line = b"\n"
            yield line.removeprefix(_BOM) if self._number == 1 else line

    def _json_lines(self) -> Iterator[Entry | BadLine]:
        for line in self._lines():
            if self._overlong:
                yield _too_long(self._overlong.pop())
            elif line.strip():
                yield _entry_of(line, self._number)

    def _csv_rows(self) -> Iterator[Entry | BadLine]:
        lines = (line.decode("utf-8", "surrogateescape") for line in self._lines())
        header: Sequence[str] | None = None
        for line, row in _numbered(lines):
            if self._overlong:
                yield from map(_too_long, self._overlong)
                self._overlong.clear()
            elif isinstance(row, BadLine):
                yield row
            elif not any(map(str.strip, row)):
                continue
            elif header is not None:
                yield _row_of(row, header, line)
            else:
                header = [cell.strip().lower() for cell in row]
                if problems := list(_header_problems(header, any_columns=self._any_columns)):
                    yield from (BadLine(line=line, problem=problem) for problem in problems)
                    return
        yield from map(_too_long, self._overlong)


def _too_long(line: int) -> BadLine:
    return BadLine(line=line, problem=f"is longer than {MAX_LINE_BYTES} bytes")


def _entry_of(line: bytes, number: int) -> Entry | BadLine:
    found = _read_fast(line)
    return _read_strictly(line, number) if found is None else Entry(line=number, fields=found)


def _read_fast(line: bytes) -> dict[str, Any] | None:
    """The fields of a line without problems; None if the line must be read strictly."""
    found = _decoded(line)
    return found if found is not None and found.keys() <= _KNOWN else None


def _decoded(text: bytes) -> dict[str, Any] | None:
    """A JSON object; None if it may have a duplicate name, or must be read strictly for another reason."""
    try:
        found = _QUICK.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    # Without a backslash, each string has two quotes. If a name occurs twice, fewer strings are decoded than written.
    plain = b"\\" not in text and text.count(b'"') == 2 * _count_strings(found)
    return found if plain else None


def _count_strings(found: Mapping[str, Any]) -> int:
    """The number of names and strings, for values of the types that fields have."""
    count = len(found)
    for name, value in found.items():
        if value.__class__ is str:
            count += 1
        elif value.__class__ is list:
            count += len(value)
        elif value.__class__ is dict:
            count += len(value) if name == "quotas" else 2 * len(value)
    return count


def _read_strictly(line: bytes, number: int) -> Entry | BadLine:
    try:
        found = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError:
        return BadLine(line=number, problem="is not UTF-8")
    except _DuplicateError as error:
        return BadLine(line=number, problem=f"{safe_name(error.name)} occurs twice")
    except (ValueError, RecursionError):
        return BadLine(line=number, problem="is not JSON")
    if not isinstance(found, dict):
        return BadLine(line=number, problem="is not a JSON object: each line holds one key")
    if problem := unknown_field(found):
        return BadLine(line=number, problem=problem)
    return Entry(line=number, fields=found)


def unknown_field(names: Iterable[str]) -> str:
    """What is wrong with names that no field has; empty where all are known."""
    unknown = list(dict.fromkeys(safe_name(name) for name in names if name not in _KNOWN))[:_MOST_UNKNOWN]
    fields = "fields" if len(unknown) > 1 else "field"
    return f"unknown {fields} {', '.join(unknown)} (known: {', '.join(FIELDS)})" if unknown else ""


class _DuplicateError(Exception):
    def __init__(self, name: str) -> None:
        self.name = name


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateError(next(name for name in names if names.count(name) > 1))
    return found


def safe_name(name: str) -> str:
    """A name that may be shown: a file without a header row has hashes in place of names."""
    return repr(name) if _NAME.fullmatch(name) else "(not shown: not a name)"


def _numbered(lines: Iterator[str]) -> Iterator[tuple[int, list[str] | BadLine]]:
    """Rows of CSV with the lines on which they begin. The first line with text shows the separator."""
    beginning = list(_to_first_text(lines))
    first = beginning[-1] if beginning else ""
    if problem := _unreadable(first):
        yield len(beginning), BadLine(line=len(beginning), problem=problem)
        return
    stated = _SEPARATOR_LINE.fullmatch(first)
    if stated:
        beginning[-1] = "\n"
    rows = csv.reader(chain(beginning, lines), strict=True, delimiter=stated[1] if stated else _separator(first))
    while True:
        line = rows.line_num + 1
        try:
            row: list[str] | BadLine = next(rows)
        except StopIteration:
            return
        except csv.Error:
            row = BadLine(line=line, problem="is not CSV: look for a quote that is not closed or not doubled")
        yield line, row


def _to_first_text(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if line.strip():
            return


def _unreadable(first: str) -> str:
    """Why the whole file cannot be read, judging by its first line; empty if it can."""
    if first.startswith(("\udcff\udcfe", "\udcfe\udcff")) or "\0" in first:
        return "is not UTF-8, but maybe UTF-16: save the file as CSV in UTF-8"
    if "\r" in first.rstrip("\r\n"):
        return "its lines end in CR alone: save the file with LF or CRLF at their ends"
    return ""


def _separator(first: str) -> str:
    """The most frequent separator in the header row."""
    return max(",;\t", key=first.count)


def _header_problems(header: Sequence[str], *, any_columns: bool) -> Iterator[str]:
    unknown = [] if any_columns else [str(place) for place, name in enumerate(header, 1) if name not in _KNOWN]
    if unknown:
        what = f"column {unknown[0]}" if len(unknown) == 1 else f"columns {', '.join(unknown)}"
        yield f"unknown name in the header row: {what} (known: {', '.join(FIELDS)})"
    for place, name in enumerate(header, 1):
        if name in _KNOWN and name in header[: place - 1]:
            yield f"column {place} of the header row, {name!r}, occurs twice"
    for name in ("key", "name") if any_columns else NEEDED:
        if name not in header and not (name == "hash" and _PLAINTEXT in header):
            yield f"the header row has no column {name!r}"


def _row_of(row: Sequence[str], header: Sequence[str], line: int) -> Entry | BadLine:
    if len(row) != len(header):
        return BadLine(line=line, problem=f"has {len(row)} cells, but the header row has {len(header)}")
    if _NOT_UTF8.search("".join(row)):
        return BadLine(line=line, problem="is not UTF-8")
    # A key is taken as written: spaces may belong to it, or be a sign of a mistake.
    cells = ((name, cell if name == _PLAINTEXT else cell.strip()) for name, cell in zip(header, row, strict=True))
    fields: dict[str, object] = {name: cell for name, cell in cells if cell}
    for name in _CELLS:
        if name in fields:
            fields[name] = _cell(name, str(fields[name]))
    return Entry(line=line, fields=fields)


def _cell(name: str, text: str) -> object:
    try:
        return _CELLS[name](text)
    except (ValueError, KeyError, RecursionError):
        return Unreadable(_CELL_FORMATS[name])
    except _DuplicateError as error:
        return Unreadable(f"{safe_name(error.name)} occurs twice")


def _quotas(cell: str) -> dict[str, object]:
    found = [_QUOTA.fullmatch(part) for part in cell.split()]
    return _object([(pair[1], int(pair[2])) for pair in map(_matched, found)])


def _matched(found: re.Match[str] | None) -> re.Match[str]:
    if found is None:
        raise ValueError
    return found


def _metadata(cell: str) -> object:
    found = _decoded(cell.encode("utf-8", "surrogateescape"))
    return json.loads(cell, object_pairs_hook=_object) if found is None else found


def _truth(cell: str) -> bool:
    return _TRUTHS[cell.lower()]


_TRUTHS: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("true", "1", "yes", "y", "on", "enabled", "active"), True),
    **dict.fromkeys(("false", "0", "no", "n", "off", "disabled", "inactive"), False),
}
_PLAINTEXT: Final = "key"
"""The field for a key itself, instead of its hash."""
_KNOWN: Final = frozenset({*FIELDS, _PLAINTEXT})
_QUICK: Final = msgspec.json.Decoder(dict[str, Any])
_CELLS: Final[Mapping[str, Callable[[str], object]]] = {
    "scopes": str.split,
    "quotas": _quotas,
    "metadata": _metadata,
    "enabled": _truth,
}
_CELL_FORMATS: Final = {
    "scopes": "separate them by spaces",
    "quotas": "write name=limit, separated by spaces",
    "metadata": "write a JSON object of strings",
    "enabled": "write TRUE or FALSE",
}


# Exported keys: their public fields, as lines of a file.


_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def neutral(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: with an apostrophe if it could begin one (CWE-1236)."""
    return f"'{cell}" if cell.startswith(_FORMULA) or cell.lstrip().startswith(_FORMULA) else cell


def json_line(key: PublicKey) -> str:
    """A JSON object and a line feed."""
    return msgspec.json.encode(key).decode() + "\n"


def csv_line(key: PublicKey) -> str:
    """A row of CSV (RFC 4180) with neutral cells. Scopes and quotas (`name=limit`) are separated by spaces."""
    return _row([write(value) for write, value in zip(_CELL_WRITERS, msgspec.structs.astuple(key), strict=True)])


def csv_header() -> str:
    return _row(PUBLIC_FIELDS)


def import_record(key: ApiKey) -> Mapping[str, Any]:
    """The fields of a key for `sidecar keys import`, with its hash."""
    fields = {**public_fields(key), "hash": key.digest.hex(), "algorithm": key.algorithm}
    return {name: fields[name] for name in FIELDS if fields.get(name)}


def _row(cells: Sequence[str]) -> str:
    row: str = _CSV.writerow([neutral(cell) for cell in cells])
    return row


class _Unchanged:
    """A target for csv.writer, which makes `writerow` return the row."""

    def write(self, text: str) -> str:
        return text


_CSV: Final[Any] = csv.writer(_Unchanged(), lineterminator="\r\n")


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _exported_quotas(value: Mapping[str, int]) -> str:
    return " ".join(f"{name}={limit}" for name, limit in value.items())


def _exported_metadata(value: Mapping[str, str]) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


_EXPORTED_CELLS: Final[Mapping[str, Callable[[Any], str]]] = {
    "scopes": " ".join,
    "quotas": _exported_quotas,
    "metadata": _exported_metadata,
}
_CELL_WRITERS: Final = tuple(_EXPORTED_CELLS.get(name, _text) for name in PUBLIC_FIELDS)
