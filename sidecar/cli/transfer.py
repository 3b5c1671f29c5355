"""`sidecar keys import` and `export`, and `issue --offline`, which prints a record to import."""

import asyncio
import errno
import gc
import io
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, Final, TextIO, cast, get_args

import click

from sidecar.cli import key_service
from sidecar.cli.key_service import open_store
from sidecar.cli.options import Failure, Misuse, OneOf, printable, reported, store_options
from sidecar.cli.output import harmless, plaintext, progress
from sidecar.config.build.config import Config
from sidecar.core.apikey import ForeignHash
from sidecar.core.units import counted
from sidecar.keys.lifecycle import check_peppers, new_ids
from sidecar.keys.ports import KeyFilter, NoStore
from sidecar.keys.records import COLUMNS, public_row
from sidecar.keys.transfer.fields import LineRules, Origin
from sidecar.keys.transfer.formats import (
    BadLine,
    Entry,
    FileFormat,
    KeyFile,
    csv_header,
    csv_line,
    import_record,
    json_line,
)
from sidecar.keys.transfer.importer import Intake, InvalidFile, NoIntake, import_keys
from sidecar.keys.transfer.plaintexts import Plaintexts, hashed
from sidecar.keys.transfer.products import PRODUCTS, LeftOut, Product, product_entries
from sidecar.keys.validation import NewKey

_STDIN: Final = "-"
_STDOUT: Final = "-"
_GC_THRESHOLD: Final = 100_000
"""New objects between two garbage collections."""
_SWITCH_SECONDS: Final = 0.0005
_PAGE: Final = 2_000
"""Keys read in one batch for an export."""
_ID: Final = COLUMNS.index("id")
_FORMATS: Final = get_args(FileFormat)


@click.command("import")
@store_options
@click.option(
    "--format",
    "form",
    type=OneOf((*_FORMATS, *PRODUCTS)),
    help="Format of the file, or the product that made it. Default: by its extension, csv or jsonl.",
)
@click.option(
    "--hash",
    "hash_name",
    type=OneOf(get_args(ForeignHash)),
    help="Hash of the keys, if keys.imported has several entries for their prefix.",
)
@click.option(
    "--hash-plaintext",
    is_flag=True,
    help="Accept plaintext keys (the field key), and hash each as it is read. None is stored or printed.",
)
@click.option("--dry-run", is_flag=True, help="Check every line, but import nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("file", type=click.Path(allow_dash=True))
def import_command(
    config: str | None,
    store: str | None,
    form: str | None,
    hash_name: str | None,
    hash_plaintext: bool,
    dry_run: bool,
    as_json: bool,
    file: str,
) -> None:
    """Import hashes of keys issued elsewhere: all of them, or none.

    If any line is wrong, every wrong line is reported and nothing is imported. FILE (- for stdin) holds JSON lines or
    CSV. Each line needs the fields hash (SHA-256 in hex or base64) and name. It may have prefix (the key's first
    characters), tenant, environment, scopes, plan, quotas, metadata, expires_at, created_at, enabled, id and algorithm.
    --format kong, aws, apisix, tyk or unkey reads a list in the format of these products. Set the prefix of the keys,
    and the pepper that they are hashed with, in keys.imported of the configuration.

    \b
    Example:
      sidecar keys import -c sidecar.yaml --dry-run keys.csv
      sidecar keys import --format kong --hash-plaintext key-auths.json
    """
    settings = key_service.settings_of(config, store)
    read_as = cast(FileFormat | Product, form or ("csv" if file.lower().endswith(".csv") else "jsonl"))
    how = _How(hash=cast(ForeignHash | None, hash_name), hash_plaintext=hash_plaintext, dry_run=dry_run)
    started, left_out = time.monotonic(), LeftOut()
    with reported(), _tuned_for_bulk(), _opened(file) as lines, progress("Read") as done:
        keys = _entries(lines, read_as, left_out)
        with reporting_problems(_name_of(file), "imported"):
            count = asyncio.run(_import(settings, keys, how, done))
    if not count:
        raise Failure(f"{_name_of(file)} holds no key: nothing was imported")
    _print_notes(_name_of(file), left_out)
    seconds = max(time.monotonic() - started, 0.001)
    if as_json:
        click.echo(json.dumps({"keys": count, "imported": not dry_run, "seconds": round(seconds, 3)}, indent=2))
        return
    verb, result = ("Checked", ": no problems found") if dry_run else ("Imported", "")
    click.echo(f"{verb} {counted(count, 'key')} in {seconds:.1f} s ({count / seconds:,.0f} per second){result}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _How:
    """The options of an import."""

    hash: ForeignHash | None
    hash_plaintext: bool
    dry_run: bool


def _print_notes(name: str, left_out: LeftOut) -> None:
    for first, note in left_out.notes():
        click.echo(harmless(f"{name}:{first}: note: {note}" if first else f"{name}: note: {note}"), err=True)


def _name_of(file: str) -> str:
    return "stdin" if file == _STDIN else file


@contextmanager
def reporting_problems(name: str, done: str) -> Iterator[None]:
    """Turn InvalidFile into a Failure that names the file and each line. done: what was not, as `imported`."""
    try:
        yield
    except InvalidFile as error:
        problems = [f"{name}:{problem}" for problem in error.problems]
        raise Failure(*problems, f"nothing was {done}: {counted(len(problems), 'problem')}") from error


def _entries(file: BinaryIO, form: FileFormat | Product, left_out: LeftOut) -> Iterable[Entry | BadLine]:
    return product_entries(file, form, left_out) if form in PRODUCTS else KeyFile(file, cast(FileFormat, form))


async def _import(settings: Config, keys: Iterable[Entry | BadLine], how: _How, done: Callable[[int], None]) -> int:
    rules, hasher, at = key_service.rules_of(settings), key_service.hasher_of_environ(settings), key_service.now()
    origin = Origin(
        own=settings.keys.environments, foreign=settings.keys.imported, algorithms=hasher.algorithms, hash=how.hash
    )
    lines = LineRules(rules, origin, now=at, actor=key_service.actor(), new_id=partial(next, new_ids(os.urandom)))
    plaintexts = Plaintexts(rules, origin, hasher) if how.hash_plaintext else None
    async with _dry_intake(settings) if how.dry_run else _intake(settings, at) as intake:
        return await import_keys(hashed(keys, plaintexts), lines, intake, done)


@asynccontextmanager
async def _intake(settings: Config, at: int) -> AsyncIterator[Intake]:
    async with open_store(settings.store, create=True) as store:
        await check_peppers(store.statistics, key_service.hasher_of_environ(settings))
        async with store.imports.intake(at=at, actor=key_service.actor()) as intake:
            yield intake


@asynccontextmanager
async def _dry_intake(settings: Config) -> AsyncIterator[Intake]:
    """Open the store to look for duplicates only. If there is no store yet, there are none."""
    async with AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(open_store(settings.store))
        except NoStore:
            yield NoIntake()
            return
        yield await stack.enter_async_context(store.imports.dry_intake())


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


@contextmanager
def _tuned_for_bulk() -> Iterator[None]:
    """Collect garbage rarely, as rows form no cycles, and switch threads often: each saves a tenth of the time."""
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(_GC_THRESHOLD, *thresholds[1:])
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)


@click.command("export")
@store_options
@click.option(
    "--format", "form", type=OneOf(_FORMATS), default="jsonl", show_default=True, help="Format of the output."
)
@click.option("--tenant", callback=printable, metavar="T", help="Only keys of this tenant.")
@click.option("--environment", callback=printable, metavar="E", help="Only keys of this environment.")
@click.option(
    "-o",
    "--output",
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help="Write to this file (mode 0600); - is stdout.",
)
def export_command(
    config: str | None,
    store: str | None,
    form: str,
    output: str | None,
    tenant: str | None,
    environment: str | None,
) -> None:
    """Export key data without secrets.

    The output contains neither keys nor hashes. In CSV, a cell that a spreadsheet could take for a formula begins with
    an apostrophe.

    \b
    Example:
      sidecar keys export -c sidecar.yaml --format csv --tenant acme -o keys.csv
    """
    with reported():
        url = key_service.url_of(config, store)
        count = asyncio.run(_export(url, KeyFilter(tenant=tenant, environment=environment), form, output))
    if output is not None and not is_stdout(output):
        click.echo(f"Exported {counted(count, 'key')} to {output}.")


async def _export(url: str, wanted: KeyFilter, form: str, output: str | None) -> int:
    line, now, count = csv_line if form == "csv" else json_line, key_service.now(), 0
    wanted = replace(wanted, limit=_PAGE)
    async with open_store(url) as store:
        with _tuned_for_bulk(), progress("Exported") as done, written_to(output) as file:
            if form == "csv":
                file.write(csv_header())
            page = await store.keys.rows(wanted)
            while page:
                wanted, count = replace(wanted, after=page[-1][_ID]), count + len(page)
                lines = (line(public_row(row, now)) for row in page)
                # The store reads the next page while this one is written.
                page, _ = await asyncio.gather(store.keys.rows(wanted), asyncio.to_thread(file.writelines, lines))
                done(count)
    return count


@contextmanager
def written_to(output: str | None) -> Iterator[TextIO]:
    """Open the output for text in UTF-8; None and `-` are stdout.

    Links are followed. Only a regular file is replaced, and only once everything is written; anything else of that name
    (a device, a FIFO) is written to. Raises Misuse if it cannot be opened, Failure if it cannot be written.
    """
    with _stdout() if output is None or is_stdout(output) else _named(output) as file:
        yield file


def is_stdout(output: str) -> bool:
    """Whether `output` is `-`, or another name for stdout, such as /dev/stdout."""
    if output == _STDOUT:
        return True
    with suppress(OSError, ValueError):
        return os.path.samestat(os.stat(output), os.fstat(sys.stdout.fileno()))
    return False


@contextmanager
def _stdout() -> Iterator[TextIO]:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="")
    yield sys.stdout
    sys.stdout.flush()


@contextmanager
def _named(output: str) -> Iterator[TextIO]:
    if not output:
        raise Misuse("the output has no name: name a file, or - for stdout")
    target = os.path.realpath(output)
    try:
        descriptor, part = _output_file(output, target)
    except OSError as error:
        raise Misuse(f"{output}: {error.strerror}") from error
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
        if part is not None:
            os.replace(part, target)
    except OSError as error:
        if error.errno == errno.EPIPE:  # A FIFO whose reader is gone: as with stdout.
            raise
        raise Failure(f"{output}: {error.strerror}") from error
    finally:
        if part is not None:
            with suppress(OSError):
                os.unlink(part)


def _output_file(output: str, target: str) -> tuple[int, str | None]:
    """Return a descriptor, and the file (mode 0600) that will replace `target` at the end. Raises OSError."""
    try:
        in_place = not stat.S_ISREG(os.stat(output).st_mode)
    except FileNotFoundError:
        in_place = False
    if in_place:
        return os.open(output, os.O_WRONLY | os.O_NOCTTY), None
    return tempfile.mkstemp(dir=os.path.dirname(target), prefix=".sidecar-", suffix=".part")


def issue_offline(settings: Config, wanted: NewKey, as_json: bool) -> None:
    """Print a new key and its record for `sidecar keys import`, without a store."""
    issued = key_service.prepare(settings, wanted)
    record = import_record(issued.key)
    if as_json:
        click.echo(json.dumps({"id": issued.key.id, "key": issued.secret.text, "record": record}, indent=2))
        return
    click.echo(f"Issued {issued.key.id} ({issued.key.name}), which is not in any store yet.")
    click.echo(plaintext(issued.secret))
    click.echo("This is its record for `sidecar keys import`. It holds the hash, not the key:\n")
    click.echo(json.dumps(record, ensure_ascii=False))
