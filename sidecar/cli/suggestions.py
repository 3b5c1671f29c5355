"""How suggestions are printed: as a table, as JSON, or as commands to review."""

import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import click

from sidecar.cli.output import Grid, harmless, who
from sidecar.core.units import counted, rfc3339
from sidecar.rehearsal.suggestions.suggest import IdleRoute, KeySuggestion, QuotaFit, Refused, change_command
from sidecar.usage.recorder import DAY

_COLUMNS: Final = ("id", "name", "tenant", "scopes", "used", "requests", "suggestion")
_LEAST: Final = {"name": 9, "tenant": 7, "suggestion": 24}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The content to print. keys: in batches; `routes` is called after the last of them."""

    source: str
    """`usage`, or `log`."""
    since: int
    """Microseconds, as `until`."""
    until: int
    complete: bool
    keys: AsyncIterator[Sequence[KeySuggestion]]
    routes: Callable[[], Sequence[IdleRoute]]
    notes: Sequence[str]
    command: Sequence[str]
    """The arguments of `keys change` before the id: the configuration and the store."""
    file: str | None = None
    """The file that the keys are read from; they must be changed there, not by commands."""

    @property
    def days(self) -> str:
        return counted(max(1, round((self.until - self.since) / DAY)), "day")


async def print_table(report: Report) -> int:
    """Returns how many keys could have less; so do the others."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    grid, narrowed = None, 0
    click.echo(
        f"{_SOURCES[report.source]} from {rfc3339(report.since)[:10]} to {rfc3339(report.until)[:10]}"
        f" ({report.days}):\n"
    )
    async for page in report.keys:
        rows = [_cells(one) for one in page]
        if grid is None:
            grid = Grid(_COLUMNS, rows, width=width, least=_LEAST)
            click.echo(grid.heading())
        lines = []
        for one, row in zip(page, rows, strict=True):
            lines += [grid.line(row), *(f"    {harmless(line)}" for line in _details(one, report.days))]
        narrowed += _narrowed(page)
        click.echo("\n".join(lines))
    if grid is None:
        click.echo("There are no keys to judge.")
    lines = [*_summary(narrowed), *map(_idle, report.routes()), *report.notes]
    click.echo("\n".join(["", *map(harmless, lines)]))
    return narrowed


_SOURCES: Final = {"usage": "What the store counted", "log": "What the log holds"}


def _cells(one: KeySuggestion) -> tuple[str, ...]:
    key = one.key
    counts = (str(len(key.scopes)), str(len(one.used)), f"{one.requests:,}")
    return (*map(harmless, (key.id, key.name or "-", key.tenant or "-")), *counts, harmless(_suggestion(one)))


def _suggestion(one: KeySuggestion) -> str:
    match one.verdict:
        case "narrow":
            return f"narrow to {', '.join(one.needed)}" if one.needed else "remove its scopes"
        case "fits":
            return "fits"
        case "too_early":
            return f"too early to say: {one.why}"
        case "unused":
            return f"review: {one.why}"
        case "undecided":
            return f"cannot tell: {one.why}"


def _details(one: KeySuggestion, days: str) -> Iterator[str]:
    if one.verdict == "narrow":
        yield _of_scopes(one, days)
        if not one.smallest:
            yield f"a set of {one.at_least} or more scopes may do as well; finding it takes too many steps"
    for refused in one.refused:
        yield _of_refused(refused)
    for fit in one.quotas:
        yield _of_quota(fit)
    if one.changed:
        yield f"{counted(one.changed, 'request')} on record would be refused today, whichever of its scopes it keeps"


def _of_scopes(one: KeySuggestion, days: str) -> str:
    """`has 4 scopes, used 1 in 90 days: read; not used: write, …`."""
    number = len(one.key.scopes)
    included = f" ({one.holds} with all included)" if one.holds > number else ""
    used = f": {', '.join(one.used)}" if one.used else ""
    unused = f"; not used: {', '.join(one.unused)}" if one.unused else ""
    needs = f"; needs {', '.join(one.needed)}" if one.needed != one.used else ""
    return f"has {counted(number, 'scope')}{included}, used {len(one.used)} in {days}{used}{unused}{needs}"


def _of_refused(refused: Refused) -> str:
    times = [f"was refused {counted(refused.count, 'time')}"] if refused.count else []
    if refused.observed:
        times.append(f"would have been refused {counted(refused.observed, 'time')}")
    return f"{' and '.join(times)} on {refused.route} for lack of {refused.missing}: should it have that?"


def _of_quota(fit: QuotaFit) -> str:
    if fit.fit == "often_hit":
        limit = "" if fit.limit is None else f" ({fit.limit:,})"
        return f"quota {fit.quota}{limit} was used up for {fit.most:,} of {counted(fit.requests, 'request')}"
    return f"quota {fit.quota} is {fit.limit:,}, and at most {fit.most:,} of it was ever used"


def _idle(idle: IdleRoute) -> str:
    refused = f", and {counted(idle.refused, 'request')} refused" if idle.refused else ""
    if idle.observed:
        refused += f", and {counted(idle.observed, 'request')} went on that would have been refused"
    return f"No request passed on {idle.route.name} ({idle.route.where}){refused}."


def _summary(narrowed: int) -> Iterator[str]:
    if narrowed:
        yield f"{counted(narrowed, 'key')} could have less. To review the commands: sidecar suggest --commands"


# For programs.


async def print_json(report: Report) -> int:
    """A line for each key, since there may be very many."""
    head = {
        "source": report.source,
        "since": rfc3339(report.since),
        "until": rfc3339(report.until),
        "complete": report.complete,
    }
    click.echo(f'{json.dumps(head, indent=2)[:-2]},\n  "keys": [', nl=False)
    narrowed, between = 0, "\n"
    async for page in report.keys:
        narrowed += _narrowed(page)
        click.echo(between + ",\n".join(f"    {json.dumps(_key_as_json(one, report))}" for one in page), nl=False)
        between = ",\n"
    rest = {"routes": [_route_as_json(idle) for idle in report.routes()], "notes": list(report.notes)}
    click.echo(f"{'' if between == chr(10) else chr(10) + '  '}],\n{json.dumps(rest, indent=2)[2:]}")
    return narrowed


def _key_as_json(one: KeySuggestion, report: Report) -> dict[str, Any]:
    key = one.key
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "suggestion": one.verdict,
        "why": one.why or None,
        "requests": one.requests,
        "refused_today": one.changed,
        "scopes": list(key.scopes),
        "used": list(one.used),
        "unused": list(one.unused),
        "needed": list(one.needed),
        "smallest": one.smallest,
        "refused": [_refused_as_json(refused) for refused in one.refused],
        "quotas": [asdict(fit) for fit in one.quotas],
        "command": command_of(one, report),
    }


def _refused_as_json(refused: Refused) -> dict[str, Any]:
    return {name: value for name, value in asdict(refused).items() if name != "missing"}


def _route_as_json(idle: IdleRoute) -> dict[str, Any]:
    return {"name": idle.route.name, "where": idle.route.where, "refused": idle.refused, "observed": idle.observed}


# For people who change keys.


async def print_commands(report: Report) -> int:
    """A line for each key that could have less, and a comment with the reason above it."""
    source = f"{_SOURCES[report.source]} from {rfc3339(report.since)} to {rfc3339(report.until)}"
    click.echo(_comment(f"{source}. Review each line first."), nl=False)
    narrowed = 0
    async for page in report.keys:
        narrowed += _narrowed(page)
        click.echo("".join(f"\n{line}" for one in page for line in _lines(one, report)), nl=False)
    click.echo()
    for line in (*map(_idle, report.routes()), *report.notes):
        click.echo(_comment(line))
    return narrowed


def _lines(one: KeySuggestion, report: Report) -> Iterator[str]:
    remarks = list(_details(one, report.days))
    if one.verdict == "unused":
        remarks.insert(0, f"{one.why}: does anybody need it?")
    if not remarks:
        return
    yield ""
    yield from (_comment(f"{who(one.key)} {remark}") for remark in remarks)
    if (command := command_of(one, report)) is not None:
        yield command
    elif one.verdict == "narrow":
        where = f" in {report.file}" if report.file else ""
        yield _comment(f"change its scopes{where}: {', '.join(one.needed) or 'none'}")


def _comment(text: str) -> str:
    return f"# {harmless(text)}"


def _narrowed(page: Sequence[KeySuggestion]) -> int:
    return sum(one.verdict == "narrow" for one in page)


def command_of(one: KeySuggestion, report: Report) -> str | None:
    """`sidecar keys change ID --scope …`, quoted for a shell; None if there is nothing to change."""
    if one.verdict != "narrow" or report.file is not None or not one.key.id[:1].isalnum():
        return None
    return change_command(one.key.id, one.needed, report.command)
