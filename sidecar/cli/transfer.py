"""`sidecar keys import` and `export`, and the record of a key that is issued without a store."""

import asyncio
import gc
import io
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import BinaryIO, Final, TextIO, cast, get_args

import click

from sidecar.cli import key_service as key_tasks
from sidecar.cli.key_service import open_store, path_of
from sidecar.cli.options import Failure, Misuse, printable, reported, store_options
from sidecar.cli.output import plaintext
from sidecar.config.build.config import Config
from sidecar.core.apikey import ForeignHash
from sidecar.core.units import counted
from sidecar.keys.lifecycle import check_peppers, new_ids
from sidecar.keys.ports import KeyFilter
from sidecar.keys.transfer.fields import LineRules, Origin
from sidecar.keys.transfer.formats import FileFormat, KeyFile, csv_header, csv_line, import_record, json_line
from sidecar.keys.transfer.importer import Intake, InvalidFile, NoIntake, import_keys
from sidecar.keys.validation import NewKey

_STDIN: Final = "-"
_COLLECTED_AFTER: Final = 100_000
"""New objects."""
_TURN_SECONDS: Final = 0.0005
_LINE_BYTES: Final = 150
"""Of a short line."""
_FORMATS: Final = get_args(FileFormat)


@click.command("import")
@store_options
@click.option("--format", "form", type=click.Choice(_FORMATS), help="By default, what the file's name ends with.")
@click.option(
    "--hash",
    "hash_name",
    type=click.Choice(get_args(ForeignHash)),
    help="How the keys are hashed, where keys.imported has several entries for their prefix.",
)
@click.option("--dry-run", is_flag=True, help="Look at every line, and import nothing.")
@click.argument("file")
def import_command(
    config: str | None, store: str | None, form: str | None, hash_name: str | None, dry_run: bool, file: str
) -> None:
    """Import hashes of keys made elsewhere: all, or none.

    If any line is wrong, each wrong one is told, and nothing is imported. FILE (- for stdin) holds JSON lines or CSV
    with these fields: hash (SHA-256 in hex or base64), name; and, if wanted, prefix (the
    key's first characters), tenant, environment, scopes, plan, quotas, metadata, expires_at, created_at, id, algorithm.
    What the keys begin with, and the pepper that they are hashed with, stand in keys.imported of the configuration.

    \b
    Example:
      sidecar keys import -c sidecar.yaml --dry-run keys.csv
    """
    settings = key_tasks.settings_of(config, store)
    read_as = cast(FileFormat, form or ("csv" if file.lower().endswith(".csv") else "jsonl"))
    started = time.monotonic()
    with reported(), _at_full_speed(), _opened(file) as lines, _bar(lines) as progress:
        keys = KeyFile(lines, read_as, size=_size_of(lines))
        try:
            count = asyncio.run(_import(settings, keys, cast(ForeignHash | None, hash_name), (dry_run, progress)))
        except InvalidFile as error:
            name = "stdin" if file == _STDIN else file
            told = [f"{name}:{problem}" for problem in error.problems]
            raise Failure(*told, f"nothing was imported: {counted(len(told), 'problem')}") from error
    seconds = max(time.monotonic() - started, 0.001)
    done = "Nothing wrong with" if dry_run else "Imported"
    click.echo(f"{done} {counted(count, 'key')} in {seconds:.1f} s ({count / seconds:,.0f} a second).")


async def _import(
    settings: Config, keys: KeyFile, hash_name: ForeignHash | None, how: tuple[bool, Callable[[int], None]]
) -> int:
    dry_run, progress = how
    rules, hasher, at = key_tasks.rules_of(settings), key_tasks.hasher_of_environ(settings), key_tasks.now()
    origin = Origin(
        own=settings.keys.environments, foreign=settings.keys.imported, algorithms=hasher.algorithms, hash=hash_name
    )
    lines = LineRules(rules, origin, now=at, actor=key_tasks.actor(), new_id=partial(next, new_ids(os.urandom)))
    async with _dry(settings) if dry_run else _wet(settings, at, keys.size) as intake:
        return await import_keys(keys, lines, intake, lambda: progress(keys.read_bytes))


@asynccontextmanager
async def _wet(settings: Config, at: int, size: int) -> AsyncIterator[Intake]:
    async with open_store(settings.store, create=True) as store:
        await check_peppers(store.statistics, key_tasks.hasher_of_environ(settings))
        async with store.imports.intake(at=at, actor=key_tasks.actor(), expected=size // _LINE_BYTES) as intake:
            yield intake


@asynccontextmanager
async def _dry(settings: Config) -> AsyncIterator[Intake]:
    """Where there is no store yet, nothing is stored already."""
    if not await asyncio.to_thread(os.path.exists, path_of(settings.store)):
        yield NoIntake()
        return
    async with open_store(settings.store) as store, store.imports.dry_intake() as intake:
        yield intake


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == _STDIN:
        yield sys.stdin.buffer
        return
    try:
        with open(name, "rb") as file:
            yield file
    except OSError as error:
        raise Misuse(f"{name}: {error.strerror}") from error


def _size_of(file: BinaryIO) -> int:
    """Bytes; 0 where that is not known."""
    with suppress(OSError, ValueError, AttributeError):
        return os.fstat(file.fileno()).st_size
    return 0


@contextmanager
def _at_full_speed() -> Iterator[None]:
    """Rows make no cycles to look for, and the store's thread soon has its turn again: each saves a tenth."""
    usual, turn = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(_COLLECTED_AFTER, *usual[1:])
    sys.setswitchinterval(_TURN_SECONDS)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        sys.setswitchinterval(turn)


@contextmanager
def _bar(file: BinaryIO) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, for a file whose size is known. Called with the bytes that were read."""
    size = _size_of(file)
    if not (size and sys.stderr.isatty()):
        yield lambda _: None
        return
    with click.progressbar(length=size, label="Importing", file=sys.stderr) as bar:
        yield lambda read: bar.update(read - bar.pos)


@click.command("export")
@store_options
@click.option("--format", "form", type=click.Choice(_FORMATS), default="jsonl", show_default=True, help="Of the lines.")
@click.option("--tenant", callback=printable, metavar="T", help="Keys of this tenant.")
@click.option("--environment", callback=printable, metavar="E", help="Keys of this environment.")
@click.option("-o", "--output", metavar="FILE", help="Written, for its owner only, in place of stdout.")
def export_command(
    config: str | None,
    store: str | None,
    form: str,
    output: str | None,
    tenant: str | None,
    environment: str | None,
) -> None:
    """Export what is known of the keys, and nothing secret.

    Neither keys nor hashes are in it. In CSV, a cell that a spreadsheet could take for a formula begins with an
    apostrophe.

    \b
    Example:
      sidecar keys export -c sidecar.yaml --format csv --tenant acme -o keys.csv
    """
    with reported():
        url = key_tasks.url_of(config, store)
        count = asyncio.run(_export(url, KeyFilter(tenant=tenant, environment=environment), form, output))
    if output is not None:
        click.echo(f"Exported {counted(count, 'key')} to {output}.")


async def _export(url: str, wanted: KeyFilter, form: str, output: str | None) -> int:
    line, now, count = csv_line if form == "csv" else json_line, key_tasks.now(), 0
    with _written(output) as file:
        if form == "csv":
            file.write(csv_header())
        async for page in key_tasks.pages(url, wanted):
            file.writelines(line(key, now) for key in page)
            count += len(page)
    return count


@contextmanager
def _written(output: str | None) -> Iterator[TextIO]:
    """The file appears whole, or not at all."""
    if output is None:
        out = io.TextIOWrapper(sys.stdout.buffer, "utf-8", newline="", write_through=False)
        try:
            yield out
        finally:
            out.flush()
            out.detach()
        return
    part = f"{output}.part"
    try:
        with open(
            os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w", encoding="utf-8", newline=""
        ) as file:
            yield file
        os.replace(part, output)
    except OSError as error:
        raise Misuse(f"{output}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            os.unlink(part)


def issue_offline(settings: Config, wanted: NewKey, as_json: bool) -> None:
    """Print a key that no store knows, and its record for `sidecar keys import`."""
    issued = key_tasks.prepare(settings, wanted)
    record = import_record(issued.key)
    if as_json:
        click.echo(json.dumps({"id": issued.key.id, "key": issued.secret.text, "record": record}, indent=2))
        return
    click.echo(f"Made {issued.key.id} ({issued.key.name}), which no store knows yet.")
    click.echo(plaintext(issued.secret))
    click.echo("Its record follows, as a line for `sidecar keys import`; it holds the hash, not the key:\n")
    click.echo(json.dumps(record, ensure_ascii=False))
