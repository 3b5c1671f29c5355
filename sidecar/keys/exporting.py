"""Keys as lines of a file: everything but what a secret could be found by."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sidecar.core.model import ApiKey
from sidecar.keys.records import shown, shown_at
from sidecar.keys.transfer.formats import FIELDS

EXPORTED: Final = (
    "id",
    "prefix",
    "name",
    "tenant",
    "environment",
    "scopes",
    "plan",
    "quotas",
    "metadata",
    "status",
    "created_at",
    "created_by",
    "expires_at",
    "disabled_at",
    "revoked_at",
    "replaced_at",
    "retires_at",
    "replaces",
    "last_used_at",
    "last_used_address",
    "last_used_agent",
)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def neutral(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe stands before what could begin one (CWE-1236)."""
    return f"'{cell}" if cell.startswith(_FORMULA) or cell.lstrip().startswith(_FORMULA) else cell


def json_line(key: ApiKey, now: int) -> str:
    """A JSON object and a line feed; `now` in microseconds decides the status."""
    return json.dumps(_fields(key, now), ensure_ascii=False) + "\n"


def csv_line(key: ApiKey, now: int) -> str:
    """A row of RFC 4180, each cell neutral. Scopes and quotas (`name=limit`) are separated by spaces."""
    return _row([_CELLS.get(name, _text)(value) for name, value in _fields(key, now).items()])


def csv_heading() -> str:
    return _row(EXPORTED)


def import_record(key: ApiKey) -> Mapping[str, Any]:
    """What `sidecar keys import` needs of a key, its hash included."""
    told = {**shown(key), "hash": key.digest.hex(), "algorithm": key.algorithm}
    return {name: told[name] for name in FIELDS if told[name]}


def _fields(key: ApiKey, now: int) -> Mapping[str, Any]:
    told = shown_at(key, now)
    return {name: told[name] for name in EXPORTED}


def _row(cells: Sequence[str]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\r\n").writerow([neutral(cell) for cell in cells])
    return written.getvalue()


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _quotas(value: Mapping[str, int]) -> str:
    return " ".join(f"{name}={limit}" for name, limit in value.items())


def _metadata(value: Mapping[str, str]) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


_CELLS: Final[Mapping[str, Callable[[Any], str]]] = {"scopes": " ".join, "quotas": _quotas, "metadata": _metadata}
