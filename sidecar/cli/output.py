"""How commands print keys, audit rows and findings: as text for a terminal, or as JSON."""

import json
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Final, Literal

import click

from sidecar.core.apikey import Secret
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.core.units import counted, rfc3339
from sidecar.doctor.findings import Named, Severity
from sidecar.keys.lifecycle import Due, Why
from sidecar.keys.ports import AuditRow
from sidecar.keys.records import effective_status, public_fields
from sidecar.usage.recorder import UsageRow

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def ends(key: ApiKey, now: int) -> str:
    """Return how long the key still works: `3d`, `never` if it does not end, `-` if it has ended."""
    if effective_status(key, now) not in ("active", "disabled"):
        return "-"
    found = ends_at(key)
    return "never" if found is None else span(found - now)


def ends_at(key: ApiKey) -> int | None:
    """Return when the key ends by itself (microseconds): it expires, or retires after being replaced."""
    return min((at for at in (key.expires_at, key.retires_at) if at is not None), default=None)


def status(key: ApiKey, now: int) -> str:
    """Return the status for people: `retiring` is a key that was replaced and still works."""
    found = effective_status(key, now)
    return "retiring" if found == "active" and key.retires_at is not None else found


Column = Callable[[ApiKey, int], str]
COLUMNS: Final[Mapping[str, Column]] = {
    "id": lambda key, now: key.id,
    "prefix": lambda key, now: key.prefix + "…",
    "name": lambda key, now: key.name,
    "tenant": lambda key, now: key.tenant or "-",
    "env": lambda key, now: key.environment or "-",
    "scopes": lambda key, now: ",".join(key.scopes) or "-",
    "status": status,
    "used": lambda key, now: "never" if key.last_used_at is None else span(now - key.last_used_at),
    "ends": ends,
    "plan": lambda key, now: key.plan or "-",
    "created": lambda key, now: rfc3339(key.created_at)[:10],
    "by": lambda key, now: key.created_by,
}
"""What `sidecar keys list` can show, by name; `now` in microseconds."""
_MIN_WIDTHS: Final = {"name": 9, "tenant": 7, "env": 4, "scopes": 8, "by": 8}
"""The columns that may be cut if a terminal is too narrow, and the minimum width of each."""


class Table:
    """Keys as lines, laid out as by Grid."""

    def __init__(self, keys: Sequence[ApiKey], now: int, columns: Sequence[str], width: int | None) -> None:
        self._now, self._columns = now, columns
        self._grid = Grid(columns, [self._cells(key) for key in keys], width=width, least=_MIN_WIDTHS)

    def heading(self) -> str:
        return self._grid.heading()

    def line(self, key: ApiKey) -> str:
        return self._grid.line(self._cells(key))

    def _cells(self, key: ApiKey) -> tuple[str, ...]:
        return tuple(harmless(COLUMNS[name](key, self._now)) for name in self._columns)


def key_as_json(key: ApiKey, now: int | None = None) -> dict[str, Any]:
    """The public fields of a key, times last. The status is that at `now` (microseconds), or the stored one."""
    fields = public_fields(key, now)
    return {name: fields[name] for name in sorted(fields, key=_is_time)}


def _is_time(name: str) -> bool:
    return name.endswith("_at")


def described(key: ApiKey, now: int) -> str:
    """The public fields of a key, one on each line."""
    return "\n".join(f"{name + ':':19}{_as_text(value)}" for name, value in key_as_json(key, now).items())


def plaintext(secret: Secret) -> str:
    """Return the API key, with the note that it is shown only once."""
    return (
        f"\n    {secret.text}\n\nThis is the API key. It is shown only once: it is not stored and cannot be recovered."
    )


@contextmanager
def showing(key: ApiKey) -> Iterator[None]:
    """Name the key if its plaintext cannot be printed: the key works, and nobody has it."""
    try:
        yield
    except OSError as error:
        error.add_note(f"; {key.id} was issued, but could not be shown: revoke it, and issue another one")
        raise


def count_as_json(row: UsageRow) -> dict[str, Any]:
    """Return a count of requests. `at` is the start of its hour, or of its day for old counts."""
    return {"at": rfc3339(row.at), "route": row.route, "status_class": row.status_class, "count": row.count}


def _as_text(value: object) -> str:
    if isinstance(value, Mapping):
        return harmless(", ".join(f"{name}={entry}" for name, entry in value.items())) or "-"
    if isinstance(value, list | tuple):
        return harmless(", ".join(value)) or "-"
    return "-" if value is None else harmless(str(value))


def span(microseconds: int) -> str:
    """Return a duration such as `3d`, or `0s` if it is not positive."""
    seconds = microseconds // 1_000_000
    return next((f"{seconds // size}{unit}" for size, unit in _UNITS if seconds >= size), "0s")


StatusAction = Literal["disable", "enable", "revoke"]
_DONE: Final[Mapping[StatusAction, str]] = {"disable": "disabled", "enable": "enabled", "revoke": "revoked"}
_TIMES: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


def status_sentence(action: StatusAction, before: ApiKey, now: int) -> str:
    """Return what happened to the key, as one sentence. before: the key before the change."""
    done = _DONE[action]
    if (
        before.status
        is {"disable": KeyStatus.DISABLED, "enable": KeyStatus.ACTIVE, "revoke": KeyStatus.REVOKED}[action]
    ):
        at = before.revoked_at if action == "revoke" else before.disabled_at
        return f"{who(before)} was {done} already{'' if at is None else ', ' + ago(now - at)}: nothing changed."
    return f"{done.capitalize()} {spoken(before, now)}."


def change_sentence(before: ApiKey, after: ApiKey) -> str:
    """Return what has changed, as one sentence."""
    changes = changes_text(before, after)
    if not changes:
        return f"{who(before)} has these values already: nothing changed."
    return f"Changed {who(before)}: {changes}."


def changes_text(before: ApiKey, after: ApiKey) -> str:
    """Return `scopes a -> b, plan none -> pro`, field by field."""
    old, new = public_fields(before), public_fields(after)
    return ", ".join(f"{name} {_as_text(old[name])} -> {_as_text(new[name])}" for name in new if old[name] != new[name])


def spoken(key: ApiKey, now: int) -> str:
    """`ID (NAME) of TENANT; last used 3 minutes ago`."""
    return f"{who(key)}; {'never used' if key.last_used_at is None else 'last used ' + ago(now - key.last_used_at)}"


def who(key: ApiKey) -> str:
    """Return `ID (NAME) of TENANT`."""
    return f"{key.id} ({harmless(key.name)}){' of ' + harmless(key.tenant) if key.tenant else ''}"


def ago(microseconds: int) -> str:
    """Return `3 minutes ago`, or `just now`."""
    seconds = microseconds // 1_000_000
    return next((f"{counted(seconds // size, unit)} ago" for size, unit in _TIMES if seconds >= size), "just now")


def harmless(text: str) -> str:
    """Replace unprintable characters: stored text must not send control sequences to the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


# The progress of a command that takes more than a second.


_QUIET_SECONDS: Final = 1.0
_BETWEEN_SECONDS: Final = 0.2


@contextmanager
def progress(done: str, noun: str = "key") -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of keys so far and writes `Exported 20000 keys …`, wiped at the end.

    Only in a terminal, on stderr, and only after a second.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    next_at, shown = time.monotonic() + _QUIET_SECONDS, False

    def report(count: int) -> None:
        nonlocal next_at, shown
        if time.monotonic() >= next_at:
            next_at, shown = time.monotonic() + _BETWEEN_SECONDS, True
            click.echo(f"\r{done} {counted(count, noun)} …", err=True, nl=False)

    try:
        yield report
    finally:
        if shown:
            click.echo("\r\x1b[K", err=True, nl=False)


# Due keys.


_WHY_TEXTS: Final[Mapping[Why, str]] = {"max_age": "too old since", "expires": "expires", "retires": "retires"}


def due_as_json(found: Sequence[Due], used: Sequence[UsageRow]) -> list[dict[str, Any]]:
    """Return each key with `why`, `at`, `unless_used_at` if it may retire sooner, and its `usage` of the last day."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in used:
        rows.setdefault(row.key_id, []).append(count_as_json(row))
    return [
        {
            "why": one.why,
            "at": rfc3339(one.at),
            "unless_used_at": rfc3339(one.unless_used_at),
            "key": key_as_json(one.key),
            "usage": rows.get(one.key.id, []),
        }
        for one in found
    ]


def due_as_text(found: Sequence[Due], used: Sequence[UsageRow], now: int) -> str:
    """Return a line for each key, and one for each route that it was used on in the last day."""
    if not found:
        return "No key is due."
    routes: dict[str, Counter[str]] = {}
    hours: dict[tuple[str, str], int] = {}
    for row in used:
        routes.setdefault(row.key_id, Counter())[row.route] += row.count
        hours[row.key_id, row.route] = max(row.at, hours.get((row.key_id, row.route), 0))
    lines: list[str] = []
    for one in found:
        lines.append(_line(one, now))
        for route, count in routes.get(one.key.id, Counter()).most_common():
            hour = rfc3339(hours[one.key.id, route])[:13]
            lines.append(
                f"    {counted(count, 'request')} in the last day on {harmless(route)}, most recently in hour {hour}Z"
            )
    return "\n".join(lines)


def _line(one: Due, now: int) -> str:
    key = one.key
    used = "never used" if key.last_used_at is None else f"used {span(now - key.last_used_at)} ago"
    tenant = f" of {harmless(key.tenant)}" if key.tenant else ""
    sooner = "" if one.unless_used_at is None else f", or {rfc3339(one.unless_used_at)} if it stays unused"
    return f"{key.id} ({harmless(key.name)}){tenant} {_WHY_TEXTS[one.why]} {rfc3339(one.at)}{sooner}; {used}"


# Audit rows.


def audit_as_json(row: AuditRow) -> dict[str, Any]:
    """Return the row, with times in RFC 3339."""
    return {
        "id": row.id,
        "at": rfc3339(row.at),
        "actor": row.actor,
        "source": row.source,
        "action": row.action,
        "key_id": row.key_id,
        "tenant": row.tenant,
        "before": _timed(row.before),
        "after": _timed(row.after),
    }


def audit_line(row: AuditRow) -> str:
    """`TIME ACTOR@SOURCE ACTION KEY (NAME): field before -> after, …`, without control characters."""
    place = f"@{row.source}" if row.source else ""
    what = ", ".join(_changes(row.before, row.after))
    name = (row.after or row.before or {}).get("name")
    named = f" ({name})" if name else ""
    line = f"{rfc3339(row.at)} {row.actor}{place} {row.action} {row.key_id}{named}{': ' if what else ''}{what}"
    return harmless(line)


def _changes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[str]:
    old, new = _timed(before) or {}, _timed(after) or {}
    if not old:
        return [f"{name} {_value(new[name])}" for name in ("name", "tenant", "scopes", "replaces") if new.get(name)]
    return [
        f"{name} {_value(old.get(name))} -> {_value(new.get(name))}" for name in new if old.get(name) != new.get(name)
    ]


def _timed(key: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if key is None:
        return None
    return {name: rfc3339(value) if name.endswith("_at") else value for name, value in key.items()}


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# Findings of doctor.


_REPORT_WIDTH: Final = 100
_COLOURS: Final = {
    Severity.OK: "green",
    Severity.WARNING: "yellow",
    Severity.PROBLEM: "red",
    Severity.UNCHECKED: "cyan",
}
_SEVERITY_WIDTH: Final = max(map(len, Severity))
_CHECK_WIDTH: Final = 15
_INDENT: Final = " " * (2 + _SEVERITY_WIDTH + 2 + _CHECK_WIDTH + 2)


def findings_as_json(path: str, found: Sequence[Named]) -> dict[str, Any]:
    """Return `config`, `counts` by severity, and `findings`."""
    return {
        "config": path,
        "counts": _counts(found),
        "findings": [
            {
                "group": one.group,
                "check": one.check,
                "severity": one.finding.severity.value,
                "saw": one.finding.saw,
                "why": one.finding.why,
                "do": one.finding.do,
            }
            for one in found
        ],
    }


def findings_as_text(path: str, found: Sequence[Named]) -> str:
    """Return the findings by group, at most 100 columns wide except for long paths. `click.echo` strips the colours."""
    lines = [f"Checks of {harmless(path)}"]
    for group, some in groupby(found, key=lambda one: one.group):
        lines += ["", click.style(group, bold=True)]
        for one in some:
            lines += _lines(one)
    return "\n".join([*lines, "", _summary(_counts(found))])


def _lines(one: Named) -> Iterator[str]:
    finding = one.finding
    severity = click.style(f"{finding.severity.value:<{_SEVERITY_WIDTH}}", fg=_COLOURS[finding.severity])
    first, *rest = _wrapped(finding.saw)
    yield f"  {severity}  {one.check:<{_CHECK_WIDTH}}  {first}"
    yield from (_INDENT + line for line in rest)
    for label, text in (("Why: ", finding.why), ("Do: ", finding.do)):
        if text:
            yield from (_INDENT + line for line in _wrapped(label + text, hanging=len(label)))


def _wrapped(text: str, *, hanging: int = 0) -> list[str]:
    return textwrap.wrap(
        harmless(text),
        _REPORT_WIDTH - len(_INDENT),
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def _counts(found: Sequence[Named]) -> dict[str, int]:
    counts = Counter(one.finding.severity for one in found)
    return {severity.value: counts[severity] for severity in Severity}


def _summary(counts: dict[str, int]) -> str:
    nouns = {"problem": ("problem", "problems"), "warning": ("warning", "warnings"), "ok": ("ok", "ok")}
    totals = [f"{counts[name]} {nouns[name][counts[name] != 1]}" for name in nouns]
    unchecked = counts["unchecked"]
    if not unchecked:
        return f"{', '.join(totals)}; everything was checked."
    return f"{', '.join(totals)}. {counted(unchecked, 'check')} could not run: whether these are in order is not known."


class Grid:
    """Lays out cells in columns. The first rows decide the width of each column.

    width: of the terminal; longer cells are cut. None: nothing is cut.
    least: the columns that may be cut if a terminal is too narrow, and the minimum width of each.
    """

    def __init__(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None, least: Mapping[str, int]
    ) -> None:
        self._columns, self._least, self._cut = columns, least, width is not None
        self._widths = [max([len(name), *(len(row[place]) for row in rows)]) for place, name in enumerate(columns)]
        if width is not None:
            self._shrink(width)

    def heading(self) -> str:
        return self.line([name.upper() for name in self._columns])

    def line(self, cells: Sequence[str]) -> str:
        return " ".join(map(self._fitted, self._columns, cells, self._widths)).rstrip()

    def _shrink(self, width: int) -> None:
        """Narrow the widest column first, each down to its minimum."""
        while sum(self._widths) + len(self._columns) - 1 > width:
            places = [at for at, name in enumerate(self._columns) if self._widths[at] > self._least.get(name, 1000)]
            if not places:
                return
            self._widths[max(places, key=lambda at: self._widths[at])] -= 1

    def _fitted(self, column: str, text: str, width: int) -> str:
        return _fit(text, width) if self._cut and column in self._least else text.ljust(width)


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"
