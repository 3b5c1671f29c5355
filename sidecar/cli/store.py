"""`sidecar store` and `sidecar audit`."""

import asyncio
import json
from dataclasses import replace
from typing import Any, Final

import click

from sidecar.cli import key_service
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
from sidecar.core.units import counted
from sidecar.keys.ports import AuditFilter, AuditState
from sidecar.store.audit import head_from

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
    """Manage the key store.

    \b
    Example:
      sidecar store make -c sidecar.yaml
    """


@store_group.command()
@store_options
def make(config: str | None, store: str | None) -> None:
    """Create an empty key store if there is none.

    An existing store is left as it is. `sidecar serve` never creates a store, so that a lost volume is noticed. Run
    this command before the first start of an installation whose keys are issued later.

    \b
    Example:
      sidecar store make --store sqlite:///var/lib/sidecar/keys.db
    """
    with reported():
        url = key_service.url_of(config, store)
        asyncio.run(_make(url))
    click.echo(f"The key store {url} exists.")


async def _make(url: str) -> None:
    async with open_store(url, create=True):
        pass
