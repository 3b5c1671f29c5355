"""`sidecar keys disable` and `revoke` for all keys that options select: a dry run, then one transaction."""

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypedDict

import click

from sidecar.cli import key_service
from sidecar.cli.options import Failure, Misuse, printable, reported, seconds
from sidecar.cli.output import Table, key_as_json
from sidecar.core.model import ApiKey
from sidecar.core.units import counted
from sidecar.keys.ports import KeyFilter
from sidecar.keys.transitions import ManyAction, changed_alike, is_open_to

_SHOWN: Final = ("tenant", "prefix", "used", "status", "name", "id")
_AT_MOST: Final = 10_000
"""Keys in one transaction, during which other writers wait."""
_DONE: Final[Mapping[ManyAction, str]] = {"disable": "Disabled", "revoke": "Revoked"}


class Selection(TypedDict):
    """The options that select keys."""

    tenant: str | None
    environment: str | None
    unused_for: float | None
    dry_run: bool
    yes: bool


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select keys instead of KEY."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask. Required to change many keys without a terminal."),
        click.option("--dry-run", is_flag=True, help="Only list the keys that the options select."),
        click.option(
            "--unused-for",
            callback=seconds,
            metavar="TIME",
            help="All keys that were not used for this long, such as 90d.",
        ),
        click.option("--environment", callback=printable, metavar="E", help="All keys of this environment."),
        click.option("--tenant", callback=printable, metavar="T", help="All keys of this tenant."),
    ):
        command = option(command)
    return command


def selects(key: str | None, selection: Selection) -> bool:
    """Whether options select the keys. Raises Misuse unless either these or KEY are given."""
    given = any(selection[name] is not None for name in ("tenant", "environment", "unused_for"))
    if given == (key is not None):
        raise Misuse("give either KEY, or --tenant, --environment or --unused-for to select many keys")
    if key is not None and selection["dry_run"]:
        raise Misuse("--dry-run goes with --tenant, --environment or --unused-for; see a key with sidecar keys show")
    return given


def change_selected(action: ManyAction, url: str, selection: Selection, *, as_json: bool) -> None:
    """List the selected keys; unless it is a dry run, ask, and change them all or none."""
    with reported():
        asyncio.run(_change(action, url, selection, as_json))


async def _change(action: ManyAction, url: str, selection: Selection, as_json: bool) -> None:
    at, dry = key_service.now(), selection["dry_run"]
    async with key_service.open_store(url) as store:
        found = await store.keys.list(_filter(selection, at))
        keys = [key for key in found if is_open_to(action, key)]
        if len(found) > _AT_MOST:
            raise Failure(f"more than {_AT_MOST:,} keys are selected: select fewer, for example by --environment")
        if not dry and keys:
            _ask(action, keys, at, selection["yes"])
            # A key may have been used, or revoked, since it was listed.
            edit = changed_alike(action, at, unused_since=_filter(selection, at).unused_since)
            ids = [key.id for key in keys]
            both = await store.keys.change_all(ids, edit, action=action, at=at, actor=key_service.actor())
            keys = [after for before, after in both if before != after]
    click.echo(_as_json(action, keys, at, dry) if as_json else _as_text(action, keys, at, dry))


def _filter(selection: Selection, at: int) -> KeyFilter:
    unused = selection["unused_for"]
    return KeyFilter(
        tenant=selection["tenant"],
        environment=selection["environment"],
        unused_since=None if unused is None else at - int(unused * 1_000_000),
        sort="tenant",
        limit=_AT_MOST + 1,
    )


def _ask(action: ManyAction, keys: Sequence[ApiKey], at: int, yes: bool) -> None:
    if yes:
        return
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise Misuse(f"would {action} {counted(len(keys), 'key')}: look at them with --dry-run, then give --yes")
    click.echo(_table(keys, at), err=True)
    final = "? It cannot be undone" if action == "revoke" else "?"
    click.confirm(f"{action.capitalize()} {counted(len(keys), 'key')}{final}", abort=True, err=True)


def _table(keys: Sequence[ApiKey], at: int) -> str:
    table = Table(keys, at, _SHOWN, None)
    return "\n".join([table.heading(), *map(table.line, keys)])


def _as_text(action: ManyAction, keys: Sequence[ApiKey], at: int, dry: bool) -> str:
    if not keys:
        return f"No key to {action} is selected."
    tenants = counted(len({key.tenant for key in keys}), "tenant")
    done = f"Would {action}" if dry else _DONE[action]
    summary = f"{done} {counted(len(keys), 'key')} of {tenants}."
    return f"{_table(keys, at)}\n{summary}" if dry else summary


def _as_json(action: ManyAction, keys: Sequence[ApiKey], at: int, dry: bool) -> str:
    return json.dumps({"action": action, "dry_run": dry, "keys": [key_as_json(key, at) for key in keys]}, indent=2)
