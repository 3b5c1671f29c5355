"""`sidecar keys list`, `due` and `usage`: which keys exist, which need replacing, and what they are used for."""

import asyncio
import json
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from heapq import nsmallest
from typing import Any, Final, TypedDict, Unpack, get_args

import click

from sidecar.cli import key_service
from sidecar.cli.key_service import open_store
from sidecar.cli.options import (
    OneOf,
    WholeNumber,
    config_here,
    from_store,
    key_name,
    printable,
    reported,
    search_text,
    seconds,
    shortened,
)
from sidecar.cli.output import COLUMNS, Table, count_as_json, due_as_json, due_as_text, ends_at, harmless, key_as_json
from sidecar.config.policy import KeySettings
from sidecar.config.store_url import shown_store
from sidecar.core.model import ApiKey
from sidecar.core.units import rfc3339
from sidecar.keys.lifecycle import Due, upcoming_keys
from sidecar.keys.ports import KeyFilter, StatusFilter
from sidecar.store.store import Store
from sidecar.usage.recorder import DAY, HOUR, UsageFilter, UsageRow

_BAR: Final = 40
_ROUTE_CHARS: Final = 60
_CLASSES: Final = (1, 2, 3, 4, 5)
_USAGE_KEYS: Final = 500
"""`due` shows the usage of at most this many keys."""
_HOURLY_DAYS: Final = 2
"""Up to this many days are shown by hour, more by day."""


@click.command()
@from_store
@click.option("--days", type=WholeNumber(1, 3660), default=7, show_default=True, help="How far to look back.")
@click.argument("key", callback=key_name)
def usage(config: str | None, store: str | None, as_json: bool, days: int, key: str) -> None:
    """Show a key's requests by route, status class and time.

    KEY is an id, a prefix, or - to read the key from stdin. Refused requests count, too. A running sidecar writes its
    counts every few seconds, so the latest requests may be missing.

    \b
    Example:
      sidecar keys usage -c sidecar.yaml key_5f0Zr2mWq8LcXaTn3vYe --days 30
    """
    with reported():
        url = key_service.url_of(config, store)
        found, rows, since = asyncio.run(_read(url, key, days))
    click.echo(json.dumps(_as_json(found, rows, since), indent=2) if as_json else _as_text(found, rows, days))


async def _read(url: str, name: str, days: int) -> tuple[ApiKey, Sequence[UsageRow], int]:
    key = await key_service.change(url, name, key_service.keep)
    until = key_service.now()
    since = until - days * DAY
    since -= since % HOUR
    async with open_store(url) as store:
        return key, await store.usage.counts(UsageFilter(key_id=key.id, since=since, until=until)), since


def _as_json(key: ApiKey, rows: Sequence[UsageRow], since: int) -> dict[str, Any]:
    return {
        "id": key.id,
        "since": rfc3339(since),
        "last_used_at": rfc3339(key.last_used_at),
        "last_used_address": key.last_used_address,
        "last_used_agent": key.last_used_agent,
        "requests": sum(row.count for row in rows),
        "usage": list(map(count_as_json, rows)),
    }


def _as_text(key: ApiKey, rows: Sequence[UsageRow], days: int) -> str:
    total = sum(row.count for row in rows)
    span = "day" if days == 1 else f"{days} days"
    lines = [f"{key.id} ({harmless(key.name)}): {total:,} requests in the last {span}.", _last_used(key)]
    if rows:
        lines += ["", *_by_route(rows), "", *_over_time(rows, days)]
    return "\n".join(lines)


def _last_used(key: ApiKey) -> str:
    if key.last_used_at is None:
        return "Never used."
    address = f" from {harmless(key.last_used_address)}" if key.last_used_address else ""
    agent = f" by {harmless(key.last_used_agent)}" if key.last_used_agent else ""
    return f"Last used {rfc3339(key.last_used_at)}{address}{agent}."


def _by_route(rows: Sequence[UsageRow]) -> Sequence[str]:
    counts: dict[str, Counter[int]] = {}
    for row in rows:
        counts.setdefault(harmless(row.route), Counter())[row.status_class] += row.count
    present = [number for number in _CLASSES if any(count[number] for count in counts.values())]
    width = min(_ROUTE_CHARS, max(len("ROUTE"), *map(len, counts)))
    busiest = sorted(counts.items(), key=lambda entry: -entry[1].total())
    return [
        _line("ROUTE", [f"{number}XX" for number in present], width),
        *(_line(route, [f"{count[number]:,}" for number in present], width) for route, count in busiest),
    ]


def _line(route: str, cells: Sequence[str], width: int) -> str:
    name = route if len(route) <= width else route[: width - 1] + "…"
    return " ".join([name.ljust(width), *(cell.rjust(11) for cell in cells)])


def _over_time(rows: Sequence[UsageRow], days: int) -> Sequence[str]:
    """Return a bar for each hour or day with requests."""
    unit, chars = (HOUR, len("2027-01-31T12")) if days <= _HOURLY_DAYS else (DAY, len("2027-01-31"))
    totals: Counter[int] = Counter()
    for row in rows:
        totals[row.at - row.at % unit] += row.count
    heading = "HOUR (UTC)" if unit == HOUR else "DAY (UTC)"
    return [heading.ljust(chars) + "    REQUESTS", *_bars(totals, chars)]


def _bars(totals: Mapping[int, int], chars: int) -> Sequence[str]:
    most = max(totals.values())
    return [
        f"{rfc3339(at)[:chars].replace('T', ' ')} {count:>11,} {'#' * max(1, count * _BAR // most)}"
        for at, count in sorted(totals.items())
    ]


@click.command()
@from_store
@click.option(
    "--within", callback=seconds, default="14d", show_default=True, metavar="TIME", help="How far to look ahead."
)
@click.option("--tenant", metavar="T", help="Only keys of this tenant.")
def due(config: str | None, store: str | None, as_json: bool, within: float, tenant: str | None) -> None:
    """List keys that need replacing, and their latest use.

    A key is due if it is older than keys.max_age of the configuration, or if it expires or retires soon. Usage is that
    of the last day. Without a configuration, no key counts as too old.

    \b
    Example:
      sidecar keys due -c sidecar.yaml --within 30d
    """
    with reported():
        limits = key_service.settings_of(config, store).keys if config_here(config) else None
        found, used = asyncio.run(_due(key_service.url_of(config, store), limits, within, tenant))
    now = key_service.now()
    click.echo(json.dumps(due_as_json(found, used), indent=2) if as_json else due_as_text(found, used, now))


async def _due(
    url: str, limits: KeySettings | None, within_seconds: float, tenant: str | None
) -> tuple[Sequence[Due], Sequence[UsageRow]]:
    now = key_service.now()
    async with open_store(url) as store:
        found = await upcoming_keys(
            store.statistics,
            now,
            max_age_seconds=limits.max_age_seconds if limits else None,
            within_seconds=within_seconds,
            retire_unused_seconds=limits.retire_unused_seconds if limits else None,
            tenant=tenant,
        )
        ids = tuple({one.key.id for one in found})[:_USAGE_KEYS]
        return found, await store.usage.counts(UsageFilter(key_ids=ids, since=now - DAY, until=now))


_SHOWN: Final = ("id", "prefix", "name", "tenant", "env", "scopes", "status", "used", "ends")
_NEVER: Final = 2**63
_SORTS: Final[Mapping[str, Callable[[ApiKey], Any]]] = {
    "created": lambda key: -key.created_at,
    "name": lambda key: key.name.casefold(),
    "tenant": lambda key: (key.tenant or "", key.name.casefold()),
    "used": lambda key: -(key.last_used_at or 0),
    "unused": lambda key: key.last_used_at or 0,
    "ends": lambda key: ends_at(key) or _NEVER,
}


def _columns(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Parse `id,name,ends`."""
    names = _SHOWN if value is None else tuple(name.strip().lower() for name in value.split(","))
    for name in names:
        if name not in COLUMNS:
            raise click.BadParameter(f"there is no column {shortened(name)}; there are {', '.join(COLUMNS)}")
    return names


class ListOptions(TypedDict):
    """The options of `sidecar keys list`."""

    tenant: str | None
    environment: str | None
    search: str | None
    status: StatusFilter | None
    sort: str | None
    limit: int | None
    columns: tuple[str, ...]


@click.command(name="list")
@from_store
@click.option("--tenant", callback=printable, metavar="T", help="Only keys of this tenant.")
@click.option("--environment", callback=printable, metavar="E", help="Only keys of this environment.")
@click.option(
    "--search",
    callback=search_text,
    metavar="TEXT",
    help="Start of a word in the name or tenant, of an id or a prefix.",
)
@click.option("--status", type=OneOf(get_args(StatusFilter)), help="Only keys with this status.")
@click.option(
    "--sort",
    type=OneOf(tuple(_SORTS)),
    help="Newest, name, tenant, latest use, longest without use, or soonest end first. Default: newest.",
)
@click.option("--limit", type=WholeNumber(1), metavar="N", help="Show at most this many.")
@click.option("--columns", callback=_columns, metavar="A,B", help=f"Some of {','.join(COLUMNS)}.")
def list_keys(config: str | None, store: str | None, as_json: bool, **options: Unpack[ListOptions]) -> None:
    """List keys, newest first.

    ENDS is when a key expires or, after it was replaced (retiring), retires. In a terminal, long cells are cut to fit
    its width; in a pipe they are complete.

    \b
    Example:
      sidecar keys list -c sidecar.yaml --tenant acme --status active
      sidecar keys list -c sidecar.yaml --sort ends --limit 20 --columns id,name,ends
    """
    with reported():
        url = key_service.url_of(config, store)
        asyncio.run(_print_array(url, options) if as_json else _print_table(url, options))


async def _pages(store: Store, options: ListOptions) -> AsyncIterator[Sequence[ApiKey]]:
    """Yield the keys that the options select, in their order. Only another order than the store's needs them all."""
    wanted = KeyFilter(
        tenant=options["tenant"],
        environment=options["environment"],
        search=options["search"],
        effective_status=options["status"],
    )
    left, pages = options["limit"], key_service.pages(store, wanted)
    if options["sort"] is not None:
        order = _SORTS[options["sort"]]
        keys = [key async for page in pages for key in page]
        if keys:
            yield sorted(keys, key=order) if left is None else nsmallest(left, keys, key=order)
        return
    async for page in pages:
        yield page if left is None else page[:left]
        left = None if left is None else left - len(page)
        if left is not None and left <= 0:
            return


async def _print_table(url: str, options: ListOptions) -> None:
    at, table = key_service.now(), None
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    async with open_store(url) as store:
        async for page in _pages(store, options):
            if table is None:
                table = Table(page, at, options["columns"], width)
                click.echo(table.heading())
            click.echo("\n".join(map(table.line, page)))
    if table is None and any(options[name] is not None for name in ("tenant", "environment", "search", "status")):
        click.echo(
            f"No key in {shown_store(url)} matches these filters; run sidecar keys list without them to see all."
        )
    elif table is None:
        click.echo(f"No keys in {shown_store(url)} yet; issue one: sidecar keys issue -c FILE --name NAME")


async def _print_array(url: str, options: ListOptions) -> None:
    at = key_service.now()
    async with open_store(url) as store:
        keys = [key_as_json(key, at) async for page in _pages(store, options) for key in page]
    click.echo(json.dumps(keys, indent=2))
