"""`sidecar keys`: issue, list, show, change, rotate, due, usage, disable, enable, revoke."""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TypedDict, TypeVar, Unpack

import click

from sidecar.cli import key_service
from sidecar.cli.apply import apply_command
from sidecar.cli.bulk import Selection, change_selected, selecting, selects
from sidecar.cli.options import (
    Group,
    Misuse,
    changing,
    config_here,
    from_store,
    key_name,
    limits,
    moment,
    pairs,
    reported,
)
from sidecar.cli.output import (
    StatusAction,
    change_sentence,
    described,
    key_as_json,
    plaintext,
    showing,
    spoken,
    status_sentence,
)
from sidecar.cli.reports import due, list_keys, usage
from sidecar.cli.rotation import expires_option, rotate
from sidecar.cli.transfer import export_command, import_command, issue_offline
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.core.units import rfc3339
from sidecar.keys.lifecycle import Issued, Lifecycle
from sidecar.keys.records import etag_of
from sidecar.keys.transitions import UNSET, KeyChange, ManyAction, UnsetType
from sidecar.keys.validation import NewKey

V = TypeVar("V")


class ChangeOptions(TypedDict):
    """The options of `sidecar keys change`."""

    expires: int | UnsetType | None
    name: str | None
    scopes: tuple[str, ...]
    no_scopes: bool
    plan: str | None
    no_plan: bool
    metadata: Mapping[str, str]
    no_metadata: Sequence[str]
    quotas: Mapping[str, int]
    no_quotas: Sequence[str]


@click.command()
@changing
@expires_option
@click.option("--name", help="What the key is for.")
@click.option("--scope", "scopes", multiple=True, metavar="S", help="Replaces all its scopes; repeatable.")
@click.option("--no-scopes", is_flag=True, help="Remove all scopes.")
@click.option("--plan", metavar="P", help="Plan: a named set of quotas.")
@click.option("--no-plan", is_flag=True, help="Remove its plan.")
@click.option("--metadata", multiple=True, callback=pairs, metavar="K=V", help="Add or replace an entry; repeatable.")
@click.option("--no-metadata", multiple=True, metavar="K", help="Remove an entry; repeatable.")
@click.option(
    "--quota", "quotas", multiple=True, callback=limits, metavar="NAME=LIMIT", help="The key's own limit; repeatable."
)
@click.option("--no-quota", "no_quotas", multiple=True, metavar="NAME", help="Remove its own limit; repeatable.")
@click.argument("key", callback=key_name)
def change(
    config: str | None, store: str | None, as_json: bool, verbose: bool, key: str, **options: Unpack[ChangeOptions]
) -> None:
    """Change a key: its name, scopes, plan, limits, metadata or expiry.

    KEY is an id, a prefix, or - to read the key from stdin.

    \b
    Example:
      sidecar keys change -c sidecar.yaml key_5f0Zr2mWq8LcXaTn3vYe --name "CI, nightly" --plan pro
    """
    with reported():
        settings = key_service.settings_of(config, store)
        rules = key_service.rules_of(settings)

        async def verb(lifecycle: Lifecycle, found: ApiKey) -> tuple[ApiKey, ApiKey]:
            # Entries are merged into the key as it was read: the etag refuses to overwrite a concurrent change.
            wanted, etag = _change_of(found, options), etag_of(found)
            actor = key_service.actor()
            return found, await lifecycle.change(found.id, wanted, rules, actor=actor, expected_etag=etag)

        before, after = asyncio.run(key_service.change(settings.store, key, verb, settings))
    _print_changed(change_sentence(before, after), after, as_json=as_json, verbose=verbose)


def _change_of(key: ApiKey, options: ChangeOptions) -> KeyChange:
    """Return the change that the options ask for. Raises Misuse if they ask for none, or contradict each other."""
    for name, contrary, both in (
        ("--scope", "--no-scopes", options["scopes"] and options["no_scopes"]),
        ("--plan", "--no-plan", options["plan"] and options["no_plan"]),
    ):
        if both:
            raise Misuse(f"{name} and {contrary} contradict each other: give only one of them")
    change = KeyChange(
        name=UNSET if options["name"] is None else options["name"],
        scopes=options["scopes"] if options["scopes"] or options["no_scopes"] else UNSET,
        plan=options["plan"] if options["plan"] is not None or options["no_plan"] else UNSET,
        quotas=_merged(key.quotas, options["quotas"], options["no_quotas"]),
        metadata=_merged(key.metadata, options["metadata"], options["no_metadata"]),
        expires_at=options["expires"],
    )
    if change == KeyChange():
        raise Misuse("nothing to change: give at least one option, see sidecar keys change --help")
    return change


def _merged(entries: Mapping[str, V], added: Mapping[str, V], removed: Sequence[str]) -> Mapping[str, V] | UnsetType:
    if not added and not removed:
        return UNSET
    if unknown := [name for name in removed if name not in entries]:
        raise Misuse(*(f"the key has no {name!r} to remove" for name in unknown))
    return {name: value for name, value in {**entries, **added}.items() if name not in removed}


@click.group(name="keys", cls=Group)
def keys_group() -> None:
    """Issue and manage API keys.

    \b
    Example:
      sidecar keys issue -c sidecar.yaml --name "CI" --scope streams:read
    """


keys_group.add_command(change)
keys_group.add_command(rotate)
keys_group.add_command(due)
keys_group.add_command(usage)
keys_group.add_command(list_keys)
keys_group.add_command(import_command)
keys_group.add_command(apply_command)
keys_group.add_command(export_command)


class IssueOptions(TypedDict):
    """The options of `sidecar keys issue`."""

    name: str
    scopes: tuple[str, ...]
    tenant: str | None
    environment: str | None
    plan: str | None
    expires: int | None
    metadata: Mapping[str, str]
    quotas: Mapping[str, int]


@keys_group.command()
@from_store
@click.option("--name", required=True, help="What the key is for.")
@click.option("--scope", "scopes", multiple=True, metavar="S", help="Scope to grant; repeatable.")
@click.option("--tenant", metavar="T", help="Tenant that the key belongs to; * is every tenant.")
@click.option("--environment", metavar="E", help="Environment, which decides the prefix; * is every one.")
@click.option("--plan", metavar="P", help="Plan: a named set of quotas.")
@click.option("--expires", callback=moment, metavar="WHEN", help="90d, or 2027-01-31 (00:00 UTC). Default: never.")
@click.option("--metadata", multiple=True, callback=pairs, metavar="K=V", help="Entry of your own; repeatable.")
@click.option(
    "--quota", "quotas", multiple=True, callback=limits, metavar="NAME=LIMIT", help="The key's own limit; repeatable."
)
@click.option("--offline", is_flag=True, help="Use no store: print the key, and its record for `sidecar keys import`.")
def issue(config: str | None, store: str | None, as_json: bool, offline: bool, **options: Unpack[IssueOptions]) -> None:
    """Issue a key and print it once.

    Creates the store's file if there is none. Hashes the key with the pepper in SIDECAR_PEPPER, if it is set.

    \b
    Example:
      sidecar keys issue -c sidecar.yaml --name "CI" --scope streams:read --expires 90d
    """
    wanted = NewKey(
        name=options["name"],
        scopes=options["scopes"] or None,
        tenant=options["tenant"],
        environment=options["environment"],
        plan=options["plan"],
        quotas=options["quotas"],
        metadata=options["metadata"],
        expires_at=options["expires"],
    )
    with reported():
        if offline:
            issue_offline(key_service.settings_of(config, store), wanted, as_json)
            return
        issued = asyncio.run(key_service.issue(key_service.settings_of(config, store), wanted))
    with showing(issued.key):
        _print_issued(issued, as_json=as_json)


def _print_issued(issued: Issued, *, as_json: bool) -> None:
    key = issued.key
    if as_json:
        _print_json({"id": key.id, "key": issued.secret.text, **key_as_json(key)})
        return
    scopes = ", ".join(key.scopes) or "none"
    click.echo(f"Issued {key.id} ({key.name}): scopes {scopes}; expires {rfc3339(key.expires_at) or 'never'}.")
    click.echo(plaintext(issued.secret))


@keys_group.command()
@from_store
@click.argument("key", callback=key_name)
def show(config: str | None, store: str | None, as_json: bool, key: str) -> None:
    """Show a key.

    KEY is an id, a prefix, or - to read the key from stdin.

    \b
    Example:
      sidecar keys show -c sidecar.yaml key_5f0Zr2mWq8LcXaTn3vYe
    """
    found, now = _on_key(config, store, (key, key_service.keep)), key_service.now()
    click.echo(json.dumps(key_as_json(found, now), indent=2) if as_json else described(found, now))


class StatusOptions(TypedDict):
    """The options of `sidecar keys disable`, `enable` and `revoke`."""

    config: str | None
    store: str | None
    as_json: bool
    verbose: bool
    key: str


class ManyOptions(Selection):
    """The options of `sidecar keys disable` and `revoke`."""

    config: str | None
    store: str | None
    as_json: bool
    verbose: bool


def _one_of(action: ManyAction, key: str | None, options: ManyOptions) -> StatusOptions | None:
    """Return the options for one key; for many, change them, and return None."""
    if selects(key, options):
        url = key_service.url_of(options["config"], options["store"])
        change_selected(action, url, options, as_json=options["as_json"])
        return None
    return StatusOptions(
        config=options["config"],
        store=options["store"],
        as_json=options["as_json"],
        verbose=options["verbose"],
        key=key or "",
    )


@keys_group.command()
@changing
@selecting
@click.argument("key", required=False, callback=key_name)
def disable(key: str | None, **options: Unpack[ManyOptions]) -> None:
    """Disable keys: they are refused until you enable them again.

    KEY is an id, a prefix, or - to read the key from stdin. Options select many keys in place of it.

    \b
    Example:
      sidecar keys disable -c sidecar.yaml key_5f0Zr2mWq8LcXaTn3vYe
      sidecar keys disable -c sidecar.yaml --tenant globex --dry-run
    """
    if (one := _one_of("disable", key, options)) is not None:
        _set_status("disable", key_service.disable, one)


@keys_group.command()
@changing
@click.argument("key", callback=key_name)
def enable(**options: Unpack[StatusOptions]) -> None:
    """Re-enable a disabled key.

    KEY is an id, a prefix, or - to read the key from stdin.

    \b
    Example:
      sidecar keys enable -c sidecar.yaml key_5f0Zr2mWq8LcXaTn3vYe
    """
    _set_status("enable", key_service.enable, options)


@keys_group.command()
@changing
@selecting
@click.argument("key", required=False, callback=key_name)
def revoke(key: str | None, **options: Unpack[ManyOptions]) -> None:
    """Revoke keys permanently. In a terminal, it asks for confirmation.

    KEY is an id, a prefix, or - to read the key from stdin. Options select many keys in place of it.

    \b
    Example:
      printf %s "$KEY" | sidecar keys revoke -c sidecar.yaml -
      sidecar keys revoke -c sidecar.yaml --tenant globex --unused-for 90d --dry-run
    """
    if (one := _one_of("revoke", key, options)) is None:
        return
    yes = options["yes"]

    async def verb(lifecycle: Lifecycle, found: ApiKey) -> ApiKey:
        if not yes and found.status is not KeyStatus.REVOKED and _in_terminal():
            # It may block: nothing else runs on this loop, and no transaction is open.
            click.confirm(f"Revoke {spoken(found, key_service.now())}? It cannot be undone", abort=True, err=True)
        return await key_service.revoke(lifecycle, found)

    _set_status("revoke", verb, one)


def _in_terminal() -> bool:
    """Whether a person sees the question and can answer."""
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def _set_status(action: StatusAction, verb: key_service.Verb[ApiKey], options: StatusOptions) -> None:
    async def both(lifecycle: Lifecycle, found: ApiKey) -> tuple[ApiKey, ApiKey]:
        return found, await verb(lifecycle, found)

    before, after = _on_key(options["config"], options["store"], (options["key"], both))
    sentence = status_sentence(action, before, key_service.now())
    _print_changed(sentence, after, as_json=options["as_json"], verbose=options["verbose"])


def _on_key(config: str | None, store: str | None, task: tuple[str, key_service.Verb[V]]) -> V:
    with reported():
        settings = key_service.settings_of(config, store) if task[0] == "-" and config_here(config) else None
        return asyncio.run(key_service.change(key_service.url_of(config, store), *task, settings))


def _print_changed(sentence: str, key: ApiKey, *, as_json: bool, verbose: bool) -> None:
    if as_json:
        _print_json(key_as_json(key, key_service.now()))
        return
    click.echo(sentence)
    if verbose:
        click.echo(f"\n{described(key, key_service.now())}")


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))
