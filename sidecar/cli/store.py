"""`sidecar store` and `sidecar audit`."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import click

from sidecar.cli import key_service
from sidecar.cli.backup import backup_command, check_command, info_command, path_of, restore_command
from sidecar.cli.key_service import open_store
from sidecar.cli.options import (
    Failure,
    Misuse,
    OneOf,
    WholeNumber,
    from_store,
    key_name,
    printable,
    reported,
    shortened,
    since,
    store_options,
)
from sidecar.cli.output import audit_as_json, audit_line, progress
from sidecar.config.store_url import shown_store
from sidecar.core.units import counted
from sidecar.keys.ports import AuditFilter, AuditState
from sidecar.store.audit import head_from
from sidecar.store.sqlite.inspect import info
from sidecar.store.tables import copy_tables

_ACTIONS: Final = ("issue", "change", "rotate", "retire", "disable", "enable", "revoke", "import", "rehash")


@click.group(name="audit", invoke_without_command=True)
@from_store
@click.option(
    "--key", "key_id", callback=key_name, metavar="ID", help="Only changes of the key with this id or prefix."
)
@click.option("--tenant", callback=printable, metavar="T", help="Only changes of this tenant's keys.")
@click.option("--actor", callback=printable, metavar="WHO", help="Only changes by this actor, such as cli:ann.")
@click.option("--action", type=OneOf(_ACTIONS), metavar="A", help=f"One of {', '.join(_ACTIONS)}.")
@click.option("--since", callback=since, metavar="WHEN", help="Changes since 7d (ago) or 2027-01-31 (00:00 UTC).")
@click.option("--until", callback=since, metavar="WHEN", help="Changes before this time.")
@click.option("--limit", type=WholeNumber(1, 100_000), default=100, show_default=True, help="Show at most this many.")
def audit_group(config: str | None, store: str | None, as_json: bool, **filters: Any) -> None:
    """Show who changed which key, how, when and from where.

    \b
    Example:
      sidecar audit -c sidecar.yaml --action revoke --since 7d
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    with reported():
        rows = asyncio.run(_rows(key_service.url_of(config, store), AuditFilter(**filters)))
    if as_json:
        click.echo(json.dumps([audit_as_json(row) for row in rows], indent=2))
    elif rows:
        click.echo("\n".join(map(audit_line, rows)))
    else:
        click.echo("No changes match.")


async def _rows(url: str, wanted: AuditFilter) -> Any:
    async with open_store(url) as opened:
        name = wanted.key_id
        if name is not None and not name.startswith("key_"):
            key = await opened.keys.get(name)
            if key is None:
                raise Failure(f"no key {shortened(name)}; see sidecar keys list")
            wanted = replace(wanted, key_id=key.id)
        return await opened.audit.rows(wanted)


@audit_group.command()
@from_store
@click.option("--noted", metavar="HEAD", help="Head that an earlier run printed: it must still be part of the audit.")
def verify(config: str | None, store: str | None, as_json: bool, noted: str | None) -> None:
    """Check that no audit row was changed, removed or inserted. Exits with 1 if one was.

    Hashes chain the rows, and the head identifies the last one. Anyone who can write to the store could rebuild the
    whole chain, so keep the printed head somewhere else and pass it to --noted next time.

    \b
    Example:
      sidecar audit verify -c sidecar.yaml
    """
    above = click.get_current_context().parent
    given = above.params if above is not None else {}
    url = (config or given.get("config"), store or given.get("store"))
    with reported():
        state = asyncio.run(_verified(key_service.url_of(*url), noted))
    if as_json or given.get("as_json"):
        click.echo(json.dumps({"rows": state.rows, "head": state.head, "problem": state.problem}, indent=2))
    elif state.problem is None:
        click.echo(f"{counted(state.rows, 'row')}, none changed or removed. Head: {state.head}")
    if state.problem is not None:
        raise Failure(f"the audit was tampered with: {state.problem}")


async def _verified(url: str, noted: str | None) -> AuditState:
    try:
        head_from(noted or f"0:{'0' * 64}")
    except ValueError as error:
        raise Misuse(f"--noted: {error}") from error
    async with open_store(url) as opened:
        with progress("Checked", "row") as done:
            return await opened.audit.verify(noted, progress=done)


@click.group(name="store")
def store_group() -> None:
    """Manage the key store: make, back up, check and move it.

    \b
    Example:
      sidecar store make -c sidecar.yaml
      sidecar store backup -c sidecar.yaml keys-backup.db
    """


@store_group.command()
@store_options
def make(config: str | None, store: str | None) -> None:
    """Create an empty key store if there is none.

    An existing store is not changed. `sidecar serve` never creates a store, so that a lost volume is noticed. Run this
    command before the first start if you issue keys later.

    \b
    Example:
      sidecar store make --store sqlite:///var/lib/sidecar/keys.db
    """
    with reported():
        url = key_service.url_of(config, store)
        asyncio.run(_make(url))
    click.echo(f"The key store {shown_store(url)} exists.")


async def _make(url: str) -> None:
    async with open_store(url, create=True):
        pass


@store_group.command("copy")
@click.option("--from", "source", required=True, metavar="URL", help="The store to copy; it is only read.")
@click.option("--to", "destination", required=True, metavar="URL", help="An empty store, or none yet.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def copy_command(source: str, destination: str, as_json: bool) -> None:
    """Copy everything in a key store to another, empty one.

    Keys, audit, usage, networks, unusual events, quota counts and idempotency keys are copied, then compared by number
    and checksum. The other store may use another engine. If the command was killed, run it again to continue; no
    sidecar starts on an unfinished copy. Stop the sidecars first: a change during the copy makes the comparison fail,
    and later changes are missing from the copy.

    \b
    Example:
      sidecar store copy --from sqlite:keys.db --to sqlite:///srv/sidecar/keys.db
    """
    with reported(), progress("Read", "row") as done:
        counts = asyncio.run(_copy(source, destination, done))
    if as_json:
        click.echo(json.dumps(counts, indent=2))
        return
    rows = ", ".join(f"{number:,} of {table}" for table, number in counts.items() if number)
    click.echo(f"Copied and compared: {rows or 'no rows'}.")


async def _copy(source: str, destination: str, done: Callable[[int], None]) -> Mapping[str, int]:
    rows = 0

    def count(more: int) -> None:
        nonlocal rows
        rows += more
        done(rows)

    await asyncio.to_thread(_refuse_to_change, source)
    async with open_store(source) as old, open_store(destination, create=True) as new:
        return await copy_tables(old.tables, new.tables, progress=count)


def _refuse_to_change(url: str) -> None:
    """Warn about other users of the source. Raises Failure if opening it would migrate it."""
    if not url.startswith("sqlite:"):
        return
    found = info(path_of(url), now=key_service.now())
    if found.version < found.newest_version:
        raise Failure(
            f"the store has schema version {found.version}, and is only read here: back it up, then migrate it to "
            f"version {found.newest_version}, as `sidecar serve` and `sidecar keys list` do"
        )
    for pid in found.holders:
        click.echo(f"Note: process {pid} uses the store: what it changes later is not in the copy.", err=True)


for _command in (backup_command, restore_command, check_command, info_command):
    store_group.add_command(_command)
