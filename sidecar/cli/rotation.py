"""`sidecar keys rotate`: one key, whose replacement is printed, or all due keys, each into its own file."""

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Self, TypedDict, Unpack

import click

from sidecar.cli import key_service
from sidecar.cli.key_service import hasher_of_environ, open_store, rules_of
from sidecar.cli.options import Misuse, from_store, key_name, moment, printable, reported, seconds
from sidecar.cli.output import harmless, key_as_json, plaintext, showing
from sidecar.config.build.config import Config
from sidecar.core.units import counted, rfc3339
from sidecar.keys.lifecycle import Rotated, check_peppers, upcoming_keys
from sidecar.keys.ports import KeyConflict
from sidecar.keys.transitions import UNSET, Rotation, UnsetType
from sidecar.keys.validation import InvalidKey

_AT_ONCE: Final = 1_000
"""Most keys that one call replaces; the next call continues."""
_ROOM: Final = 512
"""Bytes reserved on disk before a key is issued; more than a key has."""


def expiry(context: click.Context, parameter: click.Parameter, value: str | None) -> int | UnsetType | None:
    """Takes a moment, or `never`."""
    if value is None:
        return UNSET
    return None if value == "never" else moment(context, parameter, value)


expires_option = click.option(
    "--expires", callback=expiry, metavar="WHEN", help="90d, 2027-01-31 (00:00 UTC), or never. Default: as before."
)


class RotateOptions(TypedDict):
    """Which keys `sidecar keys rotate` replaces, and how."""

    key: str | None
    overlap: float | None
    expires: int | UnsetType | None
    due: bool
    into: str | None
    within: float
    tenant: str | None


def _check(options: RotateOptions) -> None:
    """Raises Misuse."""
    due, into = options["due"], options["into"]
    if due == (options["key"] is not None):
        raise Misuse("give either KEY, or --due with --into FOLDER for all keys that are due")
    if due and into is None:
        raise Misuse("--due needs --into FOLDER: each new key is written to a file there, because it is shown once")
    if not due and (into is not None or options["tenant"] is not None or options["within"]):
        raise Misuse("--into, --within and --tenant go with --due")
    if into is not None and not Path(into).is_dir():
        raise Misuse(f"--into {into}: there is no such folder: make it, for its owner only (chmod 700)")


@click.command()
@from_store
@expires_option
@click.option("--overlap", callback=seconds, metavar="TIME", help="How long the old key keeps working; 0s: not at all.")
@click.option("--due", is_flag=True, help="Replace every key that is due, in place of KEY.")
@click.option("--into", callback=printable, metavar="FOLDER", help="With --due: where the new keys go, in a file each.")
@click.option("--within", callback=seconds, default="0s", metavar="TIME", help="With --due: how far to look ahead.")
@click.option("--tenant", callback=printable, metavar="T", help="With --due: only keys of this tenant.")
@click.argument("key", callback=key_name, required=False)
@click.pass_context
def rotate(
    context: click.Context, config: str | None, store: str | None, as_json: bool, **options: Unpack[RotateOptions]
) -> None:
    """Replace a key by a new one, or all keys that are due.

    The new key has the rights of KEY. KEY keeps working for the overlap (default: keys.rotation_overlap of the
    configuration, 24h) and then retires. The running sidecar retires it sooner once it has been unused for
    keys.retire_unused. KEY is an id, a prefix, or - to read the key from stdin.

    With --due, keys older than keys.max_age are replaced, and those that expire --within a time. Each new key is
    written to FOLDER/ID, readable only by its owner, and is not printed. Exits with 1 if one could not be replaced.

    \b
    Example:
      sidecar keys rotate -c sidecar.yaml key_5f0Zr2mWq8LcXaTn3vYe --overlap 48h
      sidecar keys rotate -c sidecar.yaml --due --within 7d --into /run/new-keys
    """
    with reported():
        _check(options)
        settings = key_service.settings_of(config, store)
        overlap = options["overlap"]
        overlap = settings.keys.rotation_overlap_seconds if overlap is None else overlap
        rotation = Rotation(overlap_seconds=overlap, expires_at=options["expires"])
        if options["due"]:
            failed = asyncio.run(_rotate_due(settings, rotation, options, as_json=as_json))
            context.exit(1 if failed else 0)
        rotated = asyncio.run(key_service.rotate(settings, options["key"] or "", rotation))
        with showing(rotated.new.key):
            _print(rotated, settings, as_json=as_json)


def _print(rotated: Rotated, settings: Config, *, as_json: bool) -> None:
    new = rotated.new
    if as_json:
        issued = {"id": new.key.id, "key": new.secret.text, **key_as_json(new.key)}
        click.echo(json.dumps({**issued, "old": key_as_json(rotated.old)}, indent=2))
        return
    sooner = "" if settings.keys.retire_unused_seconds is None else ", or less long if it stays unused"
    click.echo(f"Issued {new.key.id} to replace {rotated.old.id}; expires {rfc3339(new.key.expires_at) or 'never'}.")
    click.echo(plaintext(new.secret))
    click.echo(
        f"The old key works until {rfc3339(rotated.old.retires_at)}{sooner}. To see its usage: sidecar keys due."
    )


# All that are due.


async def _rotate_due(settings: Config, rotation: Rotation, options: RotateOptions, *, as_json: bool) -> bool:
    """Replace all due keys. Returns whether one could not be replaced."""
    problems: list[str] = []
    replaced: list[dict[str, str | None]] = []
    async for rotated, file in _replaced(settings, rotation, options, problems):
        old, new = rotated.old, rotated.new.key
        replaced.append({"old": old.id, "new": new.id, "file": file, "retires_at": rfc3339(old.retires_at)})
        if not as_json:
            until = f"the old one works until {rfc3339(old.retires_at)}"
            click.echo(f"Replaced {old.id} ({harmless(old.name)}): the new key is in {file}; {until}.")
    for problem in problems:
        click.echo(problem, err=True)
    if as_json:
        click.echo(json.dumps({"replaced": replaced, "problems": problems}, indent=2))
    elif not replaced and not problems:
        hint = "" if settings.keys.max_age_seconds is not None else " No key is too old while keys.max_age is not set."
        click.echo(f"No key is due.{hint}")
    elif replaced:
        click.echo(f"Replaced {counted(len(replaced), 'key')}. Hand each new key over, and delete its file.")
    return bool(problems)


async def _replaced(
    settings: Config, rotation: Rotation, options: RotateOptions, problems: list[str]
) -> AsyncIterator[tuple[Rotated, str]]:
    """Yields each replaced key with the file of the new one. A failure becomes a line of `problems`."""
    rules, hasher, now = rules_of(settings), hasher_of_environ(settings), key_service.now()
    async with open_store(settings.store) as store:
        await check_peppers(store.statistics, hasher)
        due = await upcoming_keys(
            store.statistics,
            now,
            max_age_seconds=settings.keys.max_age_seconds,
            within_seconds=options["within"],
            tenant=options["tenant"],
            limit=_AT_ONCE,
        )
        lifecycle = key_service.lifecycle_of(store.keys, hasher)
        for key_id in dict.fromkeys(one.key.id for one in due if one.why != "retires"):
            try:
                with _SecretFile(options["into"] or "") as file:
                    rotated = await lifecycle.rotate(key_id, rotation, rules, actor=key_service.actor())
                    file.keep(rotated)
            except (KeyConflict, InvalidKey) as error:  # Another process was faster, or the rules have changed.
                problems.append(f"{key_id}: {error}")
            except _NotKept as error:
                problems.append(str(error))
                return
            else:
                yield rotated, file.path


class _NotKept(Exception):
    """A new key could not be written. Stop replacing keys."""


class _SecretFile:
    """The file of one new key, with its disk space reserved: an issued key must not be lost to a full disk."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        try:
            self._descriptor, self.path = tempfile.mkstemp(prefix=".new-key-", dir=folder)  # For its owner only.
            try:
                os.posix_fallocate(self._descriptor, 0, _ROOM)
            except OSError as error:
                self.__exit__(type(error))
                raise
        except OSError as error:
            raise _NotKept(f"{folder}: takes no file ({error.strerror}): no more keys were replaced") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        os.close(self._descriptor)
        if kind is not None:
            os.unlink(self.path)

    def keep(self, rotated: Rotated) -> None:
        """Write the key to its file, whose name is the key's id. Raises _NotKept."""
        new, path = rotated.new, os.path.join(self._folder, rotated.new.key.id)
        text = f"{new.secret.text}\n".encode()
        try:
            os.pwrite(self._descriptor, text, 0)
            os.ftruncate(self._descriptor, len(text))
            os.fsync(self._descriptor)
            os.rename(self.path, path)
        except OSError as error:
            lost = f"{new.key.id}, which replaces {rotated.old.id}, cannot be written: {error.strerror}"
            raise _NotKept(f"{path}: {lost}. Revoke it, and issue another one") from error
        self.path = path
