"""`sidecar keys apply`: makes a store match a file of records."""

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from sidecar.cli import key_service
from sidecar.cli.key_service import open_store
from sidecar.cli.options import Misuse, from_store, reported
from sidecar.cli.output import changes_text, key_as_json, who
from sidecar.cli.transfer import reporting_problems
from sidecar.config.build.config import Config
from sidecar.core.units import counted
from sidecar.gate.compile import line_rules
from sidecar.keys.lifecycle import check_peppers
from sidecar.keys.records import public_fields
from sidecar.keys.transfer.formats import BadLine
from sidecar.keys.transfer.importer import InvalidFile
from sidecar.keys.transfer.records import Difference, Record
from sidecar.store.file import MAX_BYTES, read_file, read_records

_STDIN: Final = "-"
_MOST: Final = 10
"""Most keys, and percent of the active keys, that are revoked without `--yes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _How:
    """The options. name: of the file, for messages."""

    name: str
    prune: bool
    dry_run: bool
    yes: bool


@click.command("apply")
@from_store
@click.option("--prune", is_flag=True, help="Revoke the keys that the file does not have. It cannot be undone.")
@click.option("--dry-run", is_flag=True, help="Only show what would change. Exits with 0 in any case.")
@click.option("--yes", is_flag=True, help="Let --prune revoke over 10 keys, or over 10 % of the active keys.")
@click.argument("file")
def apply_command(
    config: str | None, store: str | None, as_json: bool, prune: bool, dry_run: bool, yes: bool, file: str
) -> None:
    """Make the store's keys what a file says they are.

    The change is atomic: all of it, or nothing. FILE (- for stdin) is a YAML list of records, or JSON lines: records as
    sidecar keys issue --offline prints them, with the fields of sidecar keys import. Missing keys are added, and keys
    with the id of a record (or its hash, if it has no id) get its values; fields that a record leaves out are removed
    from the key. Other keys are left alone unless --prune revokes them. A key keeps its hash, and a revoked key stays
    revoked. If any record is wrong, every wrong one is reported and nothing is changed.

    \b
    Example:
      sidecar keys apply -c sidecar.yaml --prune --dry-run keys.yaml
    """
    how = _How(name="stdin" if file == _STDIN else file, prune=prune, dry_run=dry_run, yes=yes)
    with reported():
        settings = key_service.settings_of(config, store)
        with reporting_problems(how.name, "changed"):
            found = asyncio.run(_apply(settings, file, how))
    click.echo(_as_json(found, dry_run=dry_run) if as_json else "\n".join(_as_text(found, how)))


async def _apply(settings: Config, file: str, how: _How) -> Difference:
    hasher, at = key_service.hasher_of_environ(settings), key_service.now()
    key_service.rules_of(settings)
    rules = line_rules(settings, hasher, now=at, actor=key_service.actor())
    records = _read(file, rules)
    async with open_store(settings.store, create=not how.dry_run) as store:
        await check_peppers(store.statistics, hasher)
        if how.dry_run:
            found = await store.records.difference(records, at=at, surplus=how.prune)
            _refuse(found.problems)
            return found
        counts = await store.statistics.counts()
        active = sum(count for (status, _), count in counts.items() if status == "active")
        actor = key_service.actor()
        return await store.records.apply(
            records, at=at, actor=actor, surplus=how.prune, allowed=lambda found: _allow(found, active, how)
        )


def _read(file: str, rules: Any) -> Sequence[Record]:
    if file == _STDIN:
        return read_records(sys.stdin.buffer.read(MAX_BYTES + 1), rules)
    try:
        return read_file(file, rules)
    except OSError as error:
        raise Misuse(f"{file}: {error.strerror}") from error


def _allow(found: Difference, active: int, how: _How) -> None:
    """Raises InvalidFile, and Misuse if too many keys would be revoked without `--yes`."""
    _refuse(found.problems)
    if not how.yes and is_many(len(found.surplus), active):
        raise Misuse(
            f"--prune would revoke {counted(len(found.surplus), 'key')}, of {counted(active, 'active key')}: look at "
            "them with --dry-run, then give --yes. Nothing was changed"
        )


def is_many(revoked: int, active: int) -> bool:
    """Whether revoking this many keys needs confirmation."""
    return revoked > _MOST or revoked * 100 > active * _MOST


def _refuse(problems: Sequence[BadLine]) -> None:
    if problems:
        raise InvalidFile(problems)


def _as_text(found: Difference, how: _How) -> Iterator[str]:
    yield from (f"+ {who(key)}" for key in found.added)
    yield from (f"~ {who(before)}: {changes_text(before, after)}" for before, after in found.changed)
    yield from (f"- {who(key)}" for key in found.surplus)
    yield from (f"! {who(key)} is revoked for good: remove its record from the file" for key in found.revoked)
    if not found:
        besides = f", but for {counted(len(found.revoked), 'revoked key')}" if found.revoked else ""
        yield f"Nothing to do: the store has what {how.name} says{besides}."
        return
    add, change, revoke = ("Would add", "change", "revoke") if how.dry_run else ("Added", "changed", "revoked")
    added = counted(len(found.added), "key")
    yield f"{add} {added}, {change} {len(found.changed)}, {revoke} {len(found.surplus)}."


def _as_json(found: Difference, *, dry_run: bool) -> str:
    changed = []
    for before, after in found.changed:
        old, new = public_fields(before), public_fields(after)
        fields = {name: {"before": old[name], "after": new[name]} for name in new if old[name] != new[name]}
        changed.append({"id": after.id, "name": after.name, "fields": fields})
    result = {
        "dry_run": dry_run,
        "added": list(map(key_as_json, found.added)),
        "changed": changed,
        "revoked": [key_as_json(key) for key in found.surplus],
        "kept_revoked": [key.id for key in found.revoked],
    }
    return json.dumps(result, indent=2)
