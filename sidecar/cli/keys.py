"""`sidecar keys`: issue, list, show, change, rotate, due, usage, disable, enable, revoke."""

import asyncio
import json
from typing import Any

import click

from sidecar.cli import key_service as key_tasks
from sidecar.cli.errors import reported
from sidecar.cli.options import from_store, limits, moment, pairs, printable
from sidecar.cli.output import Table, described, plaintext
from sidecar.cli.rotation import change, due, rotate
from sidecar.cli.transfer import export_command, import_command, issue_offline
from sidecar.cli.usage import usage
from sidecar.core.model import ApiKey
from sidecar.core.times import rfc3339
from sidecar.keys.ports import KeyFilter
from sidecar.keys.records import shown, shown_at
from sidecar.keys.validation import NewKey

_STATUSES = ("active", "disabled", "revoked", "expired", "retired")


@click.group(name="keys")
def keys_group() -> None:
    """Issue keys and manage them.

    \b
    Example:
      sidecar keys issue -c sidecar.yaml --name "CI" --scope streams:read
    """


keys_group.add_command(change)
keys_group.add_command(rotate)
keys_group.add_command(due)
keys_group.add_command(usage)
keys_group.add_command(import_command)
keys_group.add_command(export_command)


@keys_group.command()
@from_store
@click.option("--name", required=True, help="What the key is for, in words.")
@click.option("--scope", "scopes", multiple=True, metavar="S", help="May be given several times.")
@click.option("--tenant", metavar="T", help="Whom the key belongs to; * is every tenant.")
@click.option("--environment", metavar="E", help="Decides the key's prefix; * is every environment.")
@click.option("--plan", metavar="P", help="Named set of quotas.")
@click.option("--expires", callback=moment, metavar="WHEN", help="90d, or 2027-01-31 (00:00 UTC); never by default.")
@click.option("--metadata", multiple=True, callback=pairs, metavar="K=V", help="May be given several times.")
@click.option("--quota", "quotas", multiple=True, callback=limits, metavar="NAME=LIMIT", help="This key's own limit.")
@click.option(
    "--offline", is_flag=True, help="Touch no store: print the key, and its record for `sidecar keys import`."
)
def issue(config: str | None, store: str | None, as_json: bool, offline: bool, **options: Any) -> None:
    """Issue a key and print its plaintext, this once.

    The store's file is made if there is none; a pepper in SIDECAR_PEPPER is used.

    \b
    Example:
      sidecar keys issue -c sidecar.yaml --name "CI" --scope streams:read --expires 90d
    """
    expires_at, scopes = options.pop("expires"), options.pop("scopes") or None
    wanted = NewKey(expires_at=expires_at, scopes=scopes, **options)
    with reported():
        if offline:
            issue_offline(key_tasks.settings_of(config, store), wanted, as_json)
            return
        issued = asyncio.run(key_tasks.issue(key_tasks.settings_of(config, store), wanted))
    key = issued.key
    if as_json:
        _print_json({"id": key.id, "key": issued.secret.text, **shown(key)})
        return
    scopes = ", ".join(key.scopes) or "none"
    click.echo(f"Issued {key.id} ({key.name}): scopes {scopes}; expires {rfc3339(key.expires_at) or 'never'}.")
    click.echo(plaintext(issued.secret))


@keys_group.command(name="list")
@from_store
@click.option("--tenant", callback=printable, metavar="T", help="Keys of this tenant.")
@click.option("--environment", callback=printable, metavar="E", help="Keys of this environment.")
@click.option(
    "--search", callback=printable, metavar="TEXT", help="Begins words of the name or tenant, an id, or a prefix."
)
@click.option("--status", type=click.Choice(_STATUSES), help="Keys in this state.")
def list_keys(config: str | None, store: str | None, as_json: bool, **filters: Any) -> None:
    """List keys, the newest first.

    \b
    Example:
      sidecar keys list -c sidecar.yaml --tenant acme --status active
    """
    with reported():
        url = key_tasks.url_of(config, store)
        wanted = KeyFilter(standing=filters.pop("status"), **filters)
        asyncio.run(_print_array(url, wanted) if as_json else _print_table(url, wanted))


@keys_group.command()
@from_store
@click.argument("key")
def show(config: str | None, store: str | None, as_json: bool, key: str) -> None:
    """Show one key. KEY is an id, a stored prefix, or - for the plaintext on stdin.

    \b
    Example:
      sidecar keys show -c sidecar.yaml key_5f0Zr2mWq8LcXaTn3vYe
    """
    _on_key(config, store, as_json, (key, key_tasks.keep))


@keys_group.command()
@from_store
@click.argument("key")
def disable(config: str | None, store: str | None, as_json: bool, key: str) -> None:
    """Refuse KEY until it is enabled. KEY is an id, a stored prefix, or - for the plaintext on stdin.

    \b
    Example:
      sidecar keys disable -c sidecar.yaml key_5f0Zr2mWq8LcXaTn3vYe
    """
    _on_key(config, store, as_json, (key, key_tasks.disable))


@keys_group.command()
@from_store
@click.argument("key")
def enable(config: str | None, store: str | None, as_json: bool, key: str) -> None:
    """Take the disabled KEY again. KEY is an id, a stored prefix, or - for the plaintext on stdin.

    \b
    Example:
      sidecar keys enable -c sidecar.yaml key_5f0Zr2mWq8LcXaTn3vYe
    """
    _on_key(config, store, as_json, (key, key_tasks.enable))


@keys_group.command()
@from_store
@click.argument("key")
def revoke(config: str | None, store: str | None, as_json: bool, key: str) -> None:
    """Refuse KEY for ever. KEY is an id, a stored prefix, or - for the plaintext on stdin.

    \b
    Example:
      printf %s "$KEY" | sidecar keys revoke -c sidecar.yaml -
    """
    _on_key(config, store, as_json, (key, key_tasks.revoke))


def _on_key(config: str | None, store: str | None, as_json: bool, task: tuple[str, key_tasks.Verb[ApiKey]]) -> None:
    with reported():
        settings = key_tasks.settings_of(config, store) if task[0] == "-" and config is not None else None
        key = asyncio.run(key_tasks.change(key_tasks.url_of(config, store), *task, settings))
    if as_json:
        _print_json(shown_at(key, key_tasks.now()))
    else:
        click.echo(described(key, key_tasks.now()))


async def _print_table(url: str, wanted: KeyFilter) -> None:
    at = key_tasks.now()
    table = None
    async for page in key_tasks.pages(url, wanted):
        if table is None:
            table = Table(page, at)
            click.echo(table.heading())
        click.echo("\n".join(map(table.line, page)))
    if table is None and wanted != KeyFilter():
        click.echo(f"No key in {url} fits these filters; see sidecar keys list without them.")
    elif table is None:
        click.echo(f"No keys in {url} yet; issue one: sidecar keys issue -c FILE --name NAME")


async def _print_array(url: str, wanted: KeyFilter) -> None:
    at = key_tasks.now()
    keys = [shown_at(key, at) async for page in key_tasks.pages(url, wanted) for key in page]
    _print_json(keys)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))
