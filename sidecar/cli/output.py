"""Keys on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from sidecar.core.apikey import Secret
from sidecar.core.model import ApiKey
from sidecar.core.times import rfc3339
from sidecar.keys.records import shown_at, standing
from sidecar.usage.ports import UsageRow

_WIDTH = 100
_HEADINGS = ("ID", "PREFIX", "NAME", "TENANT", "ENV", "SCOPES", "STATUS", "USED", "EXPIRES")
_FIXED = {"ID": 24, "PREFIX": 13, "STATUS": 8, "USED": 5, "EXPIRES": 7}
_LEAST = {"NAME": 9, "TENANT": 7, "ENV": 4, "SCOPES": 8}
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


class Table:
    """Lines of at most 100 columns; how wide each is follows from the first keys."""

    def __init__(self, keys: Sequence[ApiKey], now: int) -> None:
        self._now = now
        rows = [self._cells(key) for key in keys]
        wanted = {
            heading: max(len(heading), *(len(row[place]) for row in rows))
            for place, heading in enumerate(_HEADINGS)
            if heading not in _FIXED
        }
        self._widths = {**_FIXED, **_shrunk(wanted)}

    def heading(self) -> str:
        return self._line(_HEADINGS)

    def line(self, key: ApiKey) -> str:
        return self._line(self._cells(key))

    def _line(self, cells: Sequence[str]) -> str:
        fitted = (_fit(cell, self._widths[heading]) for heading, cell in zip(_HEADINGS, cells, strict=True))
        return " ".join(fitted).rstrip()

    def _cells(self, key: ApiKey) -> tuple[str, ...]:
        used = "never" if key.last_used_at is None else span(self._now - key.last_used_at)
        expires = "never" if key.expires_at is None else span(key.expires_at - self._now)
        scopes = ",".join(key.scopes) or "-"
        status = standing(key, self._now)
        cells = (key.prefix + "…", key.name, key.tenant or "-", key.environment or "-", scopes, status, used, expires)
        return (key.id, *map(harmless, cells))


def described(key: ApiKey, now: int) -> str:
    """Everything that is known of one key, a line each."""
    values: Mapping[str, object] = shown_at(key, now)
    return "\n".join(f"{name + ':':19}{_written(value)}" for name, value in values.items())


def plaintext(secret: Secret) -> str:
    """The key itself, and that this is the only time."""
    return f"\n    {secret.text}\n\nThis is the key. It is shown only now: it is not stored and cannot be recovered."


def count_as_json(row: UsageRow) -> dict[str, Any]:
    """A count of requests. `at` is the start of its hour; of its day, where it is that old."""
    return {"at": rfc3339(row.at), "route": row.route, "status_class": row.status_class, "count": row.count}


def _written(value: object) -> str:
    if isinstance(value, Mapping):
        return harmless(", ".join(f"{name}={entry}" for name, entry in value.items())) or "-"
    if isinstance(value, list):
        return harmless(", ".join(value)) or "-"
    return "-" if value is None else harmless(str(value))


def _shrunk(wanted: dict[str, int]) -> dict[str, int]:
    """The widest column gives way first, down to its least."""
    room = _WIDTH - sum(_FIXED.values()) - len(_HEADINGS) + 1
    widths = dict(wanted)
    while sum(widths.values()) > room:
        yielding = [name for name, width in widths.items() if width > _LEAST[name]]
        widths[max(yielding, key=lambda name: widths[name])] -= 1
    return widths


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def span(microseconds: int) -> str:
    """`3d`: how far away, either way; `0s` for what is over or now."""
    seconds = microseconds // 1_000_000
    return next((f"{seconds // size}{unit}" for size, unit in _UNITS if seconds >= size), "0s")


def harmless(text: str) -> str:
    """Stored text must not speak to the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
