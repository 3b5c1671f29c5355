"""`sidecar store backup`, `restore`, `check` and `info`."""

import asyncio
import json
import os
from dataclasses import asdict
from types import ModuleType
from typing import Any, Final

import click

from sidecar.cli import key_service
from sidecar.cli.options import Failure, Misuse, from_store, reported
from sidecar.cli.output import harmless, progress
from sidecar.config.store_url import file_path, is_file, parse_store, shown_store, sqlite_path
from sidecar.core.units import counted, rfc3339
from sidecar.keys.ports import StoreUnavailable
from sidecar.store.sqlite.backup import Restore, Undone, back_up, restoring
from sidecar.store.sqlite.inspect import Checked, StoreInfo, check, info
from sidecar.store.store import NO_LIBRARY

_MEGABYTE: Final = 1_000_000
_VERBS: Final = {
    "issue": "issued",
    "change": "changed",
    "rotate": "rotated",
    "retire": "retired",
    "disable": "disabled",
    "enable": "enabled",
    "revoke": "revoked",
    "import": "imported",
    "rehash": "rehashed",
}
_LISTED: Final = 50


def _file_of(config: str | None, store: str | None) -> str:
    return path_of(key_service.url_of(config, store))


def path_of(url: str) -> str:
    """Return the path of the store. Raises Misuse for one that is no file."""
    if is_file(url):
        raise Misuse(f"the keys come from the file {file_path(url)}, which is no database: copy that file itself")
    if not url.startswith("sqlite:"):
        raise Misuse(
            "only a SQLite store is a file; a PostgreSQL one is saved by `pg_dump --format=custom --schema=sidecar "
            "--file=keys.dump URL` and restored by `pg_restore --clean --if-exists --single-transaction --dbname=URL "
            "keys.dump`"
        )
    try:
        return sqlite_path(parse_store(url))
    except ValueError as error:
        raise Misuse(f"--store: {error}") from error


@click.command("backup")
@from_store
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
@click.argument("file", type=click.Path())
def backup_command(config: str | None, store: str | None, as_json: bool, force: bool, file: str) -> None:
    """Copy the key store to FILE, while others use it.

    The copy is a snapshot of the store, and is checked like `sidecar store check` does before it gets its name. FILE
    has mode 0600: it holds hashes, names and tenants, but no keys. Keep a copy of the pepper, too, in another place:
    without the pepper, the backup cannot verify any key. Note the printed head of the audit for `sidecar audit verify
    --noted`.

    \b
    Example:
      sidecar store backup -c sidecar.yaml keys-$(date +%F).db
    """
    if file == "-":
        raise Misuse("a backup is a file, and no stream: name one, such as keys-backup.db")
    with reported():
        with progress("Copied", "megabyte") as done:
            checked = back_up(_file_of(config, store), file, force=force, progress=done)
        size = os.path.getsize(file)
    if as_json:
        click.echo(json.dumps({"file": file, "bytes": size, **_checked_as_json(checked)}, indent=2))
        return
    click.echo(f"Wrote {file}: {_holds(checked)}, {_megabytes(size)}.")
    if checked.audit is not None:
        click.echo(f"Head of the audit: {checked.audit.head}")


@click.command("restore")
@from_store
@click.option("--yes", is_flag=True, help="Restore even if that undoes changes made since the backup.")
@click.argument("file", type=click.Path())
def restore_command(config: str | None, store: str | None, as_json: bool, yes: bool, file: str) -> None:
    """Replace the key store by the backup FILE.

    No process may use the store meanwhile. FILE is first checked and compared with the store. If changes would be
    undone, the command lists them, in particular the keys that would work again because they were revoked or disabled
    since, and restores nothing without --yes. The previous store is kept next to the new one as
    keys.db.before-restore-TIME.

    \b
    Example:
      sidecar store restore -c sidecar.yaml keys-2027-01-31.db
    """
    with reported():
        path = _file_of(config, store)
        with (
            progress("Copied", "megabyte") as done,
            restoring(path, file, now=key_service.now(), progress=done) as restore,
        ):
            refused = bool(restore.undone) and not yes
            kept = None if refused else restore.put()
    if as_json:
        click.echo(json.dumps(_restore_as_json(restore, kept, restored=not refused), indent=2))
    else:
        _print_undone(restore.undone)
    if refused:
        raise Failure("nothing was restored, because changes would be undone. Pass --yes to restore anyway")
    if not as_json:
        click.echo(f"Restored {restore.path} from {file}: {_holds(restore.checked)}. Start the sidecar again.")
        if kept is not None:
            click.echo(f"The previous store is kept as {kept}.")


@click.command("check")
@from_store
def check_command(config: str | None, store: str | None, as_json: bool) -> None:
    """Check that the key store, or a backup, is sound. Exits with 1 if it is not. Nothing is changed.

    It checks the pages of the file and its indexes, the schema, the digest and the fields of every key, the search
    index, rows about missing keys, and the chain of the audit. On PostgreSQL, it checks what constraints do not
    guarantee: algorithms, rows about missing keys, and the chain of the audit.

    \b
    Example:
      sidecar store check --store sqlite:keys-2027-01-31.db
    """
    with reported():
        url = key_service.url_of(config, store)
        with progress("Checked", "row") as done:
            if url.startswith("postgresql:"):
                checked, name = asyncio.run(_postgresql().check(url, progress=done)), shown_store(url)
            else:
                name = path_of(url)
                checked = check(name, progress=done)
    if as_json:
        click.echo(json.dumps({**_checked_as_json(checked), "problems": checked.problems}, indent=2))
    elif not checked.problems:
        click.echo(f"{name} is sound: {_holds(checked)}, schema version {checked.version}.")
    if checked.problems:
        raise Failure(*checked.problems)


@click.command("info")
@from_store
def info_command(config: str | None, store: str | None, as_json: bool) -> None:
    """Show the contents and the users of the key store.

    Nothing is changed. Processes of other containers are not seen.

    \b
    Example:
      sidecar store info -c sidecar.yaml
    """
    with reported():
        url, now = key_service.url_of(config, store), key_service.now()
        if url.startswith("postgresql:"):
            found = asyncio.run(_postgresql().info(url, now=now))
        else:
            found = info(path_of(url), now=now)
    if as_json:
        click.echo(json.dumps(_info_as_json(found), indent=2))
        return
    for name, text in _lines_of(found).items():
        click.echo(f"{name:<14} {text}")


def _postgresql() -> ModuleType:
    """Raises StoreUnavailable."""
    try:
        # Imported here, because only users of PostgreSQL need its library.
        from sidecar.store.postgresql import inspect
    except ImportError as error:
        raise StoreUnavailable(NO_LIBRARY) from error
    return inspect


def _holds(checked: Checked) -> str:
    rows = "no audit" if checked.audit is None else f"{counted(checked.audit.rows, 'row')} of audit"
    return f"{counted(checked.keys, 'key')}, {rows}"


def _megabytes(size: int) -> str:
    return f"{size / _MEGABYTE:,.1f} MB"


def _checked_as_json(checked: Checked) -> dict[str, Any]:
    audit = checked.audit
    return {
        "schema_version": checked.version,
        "keys": checked.keys,
        "audit_rows": None if audit is None else audit.rows,
        "audit_head": None if audit is None else audit.head,
    }


def _restore_as_json(restore: Restore, kept: str | None, *, restored: bool) -> dict[str, Any]:
    undone = restore.undone
    return {
        "restored": restored,
        "kept": kept,
        **_checked_as_json(restore.checked),
        "undone": dict(undone.changes),
        "working_again": [asdict(key) for key in undone.revived],
        "working_again_count": undone.revived_count,
        "unknown": undone.unknown,
    }


def _print_undone(undone: Undone) -> None:
    if undone.unknown:
        click.echo(f"Cannot tell what changed since the backup: {undone.unknown}")
    if undone.changes:
        first, *others = [f"{number:,} {_VERBS.get(action, action)}" for action, number in undone.changes.items()]
        are = "key was" if first.startswith("1 ") else "keys were"
        number, _, verb = first.partition(" ")
        newest = rfc3339(undone.backup_at) or "never"
        listed = ", ".join([f"{number} {are} {verb}", *others])
        click.echo(f"A restore undoes all changes since this backup (newest change: {newest}): {listed}.")
    if undone.revived:
        click.echo(f"{counted(undone.revived_count, 'key')} would work again, or for longer:")
        for key in undone.revived[:_LISTED]:
            click.echo(f"  {key.id}  {key.prefix}  {key.standing:<16}  {harmless(key.name)}")
        if undone.revived_count > _LISTED:
            click.echo(f"  and {undone.revived_count - _LISTED:,} more (--json lists 1,000)")


def _info_as_json(found: StoreInfo) -> dict[str, Any]:
    return {
        "engine": found.engine,
        "path": found.path,
        "bytes": found.bytes,
        "schema_version": found.version,
        "newest_schema_version": found.newest_version,
        "keys": dict(found.keys),
        "audit_rows": found.audit_rows,
        "changed_at": rfc3339(found.changed_at),
        "change": found.change,
        "changed_by": found.changed_by,
        "used_at": rfc3339(found.used_at),
        "held_by": [{"pid": pid, "program": program} for pid, program in found.holders.items()],
        **({} if found.connections is None else {"connections": found.connections}),
    }


def _lines_of(found: StoreInfo) -> dict[str, str]:
    keys = ", ".join(f"{number:,} {status}" for status, number in found.keys.items())
    holders = ", ".join(f"process {pid} ({harmless(program)})" for pid, program in found.holders.items())
    if found.connections is not None:
        holders = f"{counted(found.connections, 'connection')} of sidecars and commands"
    change = f"{rfc3339(found.changed_at)}, {found.change} by {harmless(found.changed_by)}" if found.change else "none"
    return {
        "Engine": found.engine,
        "File" if found.connections is None else "Database": f"{found.path}, {_megabytes(found.bytes)}",
        "Schema": f"version {found.version}; this program uses {found.newest_version}, and migrates older ones",
        "Keys": keys or "none",
        "Audit": counted(found.audit_rows, "row"),
        "Newest change": change,
        "Last use": rfc3339(found.used_at) or "none",
        "Held by": holders or "no process that can be seen from here",
    }
