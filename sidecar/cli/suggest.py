"""`sidecar suggest`: which rights keys do not need."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypedDict, Unpack

import click
from click.core import ParameterSource

from sidecar.cli import key_service
from sidecar.cli.options import Misuse, WholeNumber, config_option, key_name, load_or_exit, reported, since
from sidecar.cli.output import progress
from sidecar.cli.suggestions import Report, print_commands, print_json, print_table
from sidecar.config.build.config import Config
from sidecar.config.store_url import file_path, is_file, password_of
from sidecar.core.model import ApiKey
from sidecar.core.units import counted, rfc3339
from sidecar.keys.ports import KeyFilter, NoStore
from sidecar.keys.records import effective_status
from sidecar.rehearsal.recorded import LogError, RecordedRequests, opened
from sidecar.rehearsal.suggestions.suggest import FEWEST_REQUESTS, IdleRoute, KeySuggestion, Record, Suggestions
from sidecar.rehearsal.suggestions.use import Use
from sidecar.store.file import FileStore
from sidecar.store.store import Store
from sidecar.usage.recorder import DAY

_AT_ONCE: Final = 500
_ALL_KEYS: Final = ""


class SuggestOptions(TypedDict):
    """The options of `sidecar suggest`."""

    logs: tuple[str, ...]
    since: int
    key: str | None
    min_requests: int
    assume_complete: bool


def _since(context: click.Context, parameter: click.Parameter, value: str | None) -> int:
    """As `since`, but not before 1970."""
    return max(0, since(context, parameter, value) or 0)


@click.command("suggest")
@config_option
@click.option(
    "--store", envvar="SIDECAR_STORE", metavar="URL", help="Use this key store instead of the configured one."
)
@click.option(
    "--from",
    "logs",
    multiple=True,
    metavar="FILE",
    help="An access log in JSON, plain or gzip, or - for stdin; repeatable. Default: what the store counted.",
)
@click.option("--since", callback=_since, default="90d", show_default=True, metavar="WHEN", help="90d, or 2027-01-31.")
@click.option(
    "--key", callback=key_name, metavar="ID", help="Only this key: an id, a prefix, or - to read it from stdin."
)
@click.option(
    "--min-requests",
    type=WholeNumber(1),
    default=FEWEST_REQUESTS,
    show_default=True,
    metavar="N",
    help="With fewer recorded requests, suggest nothing.",
)
@click.option("--assume-complete", is_flag=True, help="Treat a sampled log as complete.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--commands", "as_commands", is_flag=True, help="Print commands to review, with the reason above each.")
@click.option("--strict", is_flag=True, help="Exit with 1 if a key could have less.")
@click.pass_context
def suggest_command(
    context: click.Context,
    config_path: str,
    store: str | None,
    as_json: bool,
    as_commands: bool,
    strict: bool,
    **options: Unpack[SuggestOptions],
) -> None:
    """Suggest scopes that keys can do without. Changes nothing.

    For each valid key, it shows the smallest set of its scopes with which all its recorded requests would still pass,
    by the rules of the gate; the scopes that it never used; the quotas that are far above its use, or refuse it all the
    time. It also shows keys that were never used, and routes on which no request passed. A key that was issued after
    the record begins, or has few recorded requests, gets no suggestion. Scopes for lack of which a key was refused are
    shown, and never granted.

    \b
    Example:
      sidecar suggest -c sidecar.yaml --since 90d
      sidecar suggest -c sidecar.yaml --from access.jsonl.gz --from access.jsonl --commands > review.sh
    """
    if as_json and as_commands:
        raise Misuse("--json and --commands contradict each other: give only one of them")
    if options["logs"].count("-") + (options["key"] == "-") > 1:
        raise Misuse("stdin can be read only once: give - only once")
    if options["since"] > key_service.now():
        raise Misuse("--since is in the future: say when to begin, such as 90d")
    config = load_or_exit(config_path, {"store": store})
    show = print_json if as_json else print_commands if as_commands else print_table
    with reported():
        narrowed = asyncio.run(_run(_Work(config, options, _words(context, config, config_path)), show))
    if narrowed and strict:
        context.exit(1)


def _words(context: click.Context, config: Config, config_path: str) -> Sequence[str]:
    """The options of this command that `keys change` also needs; without any password."""
    typed = {
        name for name in ("config_path", "store") if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    words = ["-c", config_path] if "config_path" in typed else []
    if "store" in typed and not password_of(config.store):
        words += ["--store", config.store]
    return words


@dataclass(frozen=True, slots=True)
class _Work:
    config: Config
    options: SuggestOptions
    words: Sequence[str]

    def suggestions(self, record: Record) -> Suggestions:
        return Suggestions(self.config, record, now=key_service.now())

    def report(
        self, suggestions: Suggestions, use: Use, keys: AsyncIterator[Sequence[KeySuggestion]], *notes: str
    ) -> Report:
        record, store = suggestions.record, self.config.store

        def routes() -> Sequence[IdleRoute]:
            return () if self.options["key"] is not None else tuple(suggestions.idle_routes(use))

        return Report(
            source="log" if self.options["logs"] else "usage",
            since=record.since,
            until=record.until,
            complete=record.complete,
            keys=keys,
            routes=routes,
            notes=notes,
            command=self.words,
            file=file_path(store) if is_file(store) else None,
        )


async def _run(work: _Work, show: Callable[[Report], Awaitable[int]]) -> int:
    """Run the command. Returns how many keys could have less."""
    config, logs, name = work.config, work.options["logs"], work.options["key"]
    url = key_service.url_to_read(config)
    try:
        named = None if name is None else await key_service.change(url, name, key_service.keep, config)
        async with key_service.open_store(url) as store:
            keys = _working(store) if named is None else _one(named)
            if logs:
                return await show(await _from_logs(work, keys, with_last_use=_keeps_usage(store)))
            return await show(await _from_usage(work, keys, store))
    except NoStore:
        if not logs or name is not None:
            raise
    return await show(await _from_logs(work, None, with_last_use=False))


def _keeps_usage(store: Store) -> bool:
    return not isinstance(store, FileStore) or store.keeps_usage


async def _one(key: ApiKey) -> AsyncIterator[Sequence[ApiKey]]:
    yield [key]


async def _working(store: Store) -> AsyncIterator[Sequence[ApiKey]]:
    """Yield the keys that work, or would work if re-enabled."""
    now = key_service.now()
    async for page in key_service.pages(store, KeyFilter()):
        yield [key for key in page if effective_status(key, now) in ("active", "disabled")]


# From the counts in the store.


async def _from_usage(work: _Work, keys: AsyncIterator[Sequence[ApiKey]], store: Store) -> Report:
    if not _keeps_usage(store):
        raise Misuse("the use of keys from a file is not stored: give --from FILE, or set store.usage")
    now, asked, keep = key_service.now(), work.options["since"], work.config.usage.keep_seconds
    since = max(asked, now - int(keep * 1_000_000))
    record = Record(since=since, until=now, with_public=False, fewest_requests=work.options["min_requests"])
    suggestions, use = work.suggestions(record), Use(work.config)
    for total in await store.usage.totals([_ALL_KEYS], since=since, until=now):
        use.add_route_total(total)
    notes = (
        [] if since - asked < DAY else [f"Counts are kept for {counted(int(keep // 86_400), 'day')}: see usage.keep."]
    )
    return work.report(suggestions, use, _judged_by_counts(suggestions, use, keys, store), *notes)


async def _judged_by_counts(
    suggestions: Suggestions, use: Use, keys: AsyncIterator[Sequence[ApiKey]], store: Store
) -> AsyncIterator[Sequence[KeySuggestion]]:
    """Judge keys in batches, however many there are."""
    record = suggestions.record
    async for page in keys:
        use.forget_keys()
        for key in page:
            use.add_key(key)
        for total in await store.usage.totals([key.id for key in page], since=record.since, until=record.until):
            use.add_total(total)
        if page:
            yield [suggestions.of_key(key, use.of(key.id)) for key in page]


# From logs.


async def _from_logs(work: _Work, keys: AsyncIterator[Sequence[ApiKey]] | None, *, with_last_use: bool) -> Report:
    """keys: None if the logs are the only source of keys."""
    use, asked, options = Use(work.config, from_log=keys is None), work.options["since"], work.options
    if keys is not None:
        async for page in keys:
            for key in page:
                use.add_key(key)
    notes = [note for path in options["logs"] for note in _read(path, use, asked)]
    if use.requests == 0:
        raise Misuse(f"no request is later than {rfc3339(asked)[:10]}: give an earlier --since, or another log")
    record = Record(
        since=asked if use.first is None else max(asked, use.first),
        until=min(use.last or key_service.now(), key_service.now()),
        complete=options["assume_complete"] or not use.sampled,
        with_last_use=with_last_use,
        fewest_requests=options["min_requests"],
    )
    suggestions = work.suggestions(record)
    return work.report(
        suggestions, use, _judged_by_log(suggestions, use), *notes, *_notes(use, record, named=options["key"])
    )


async def _judged_by_log(suggestions: Suggestions, use: Use) -> AsyncIterator[Sequence[KeySuggestion]]:
    keys = iter(use.keys)
    while page := [suggestions.of_key(key, use.of(key.id)) for key in islice(keys, _AT_ONCE)]:
        yield page


def _read(path: str, use: Use, asked: int) -> Iterator[str]:
    """Count the requests of a log, and yield remarks about it. Raises Misuse."""
    name = "stdin" if path == "-" else path
    try:
        with opened(path) as file, progress("Read", "request") as report_progress:
            requests = RecordedRequests(file)
            use.add_log(requests, since=asked, progress=report_progress)
    except LogError as error:
        raise Misuse(f"{name} {error}") from error
    counts = requests.counts
    if counts.requests == 0:
        raise Misuse(f"{name} holds no request: it must be an access log with a JSON object in each line")
    if counts.first_unread is not None:
        unread = counts.foreign + counts.too_long
        first = f"the first is line {counts.first_unread:,}"
        yield f"{unread:,} of {counts.lines:,} lines of {name} are no requests: {first}."


def _notes(use: Use, record: Record, *, named: str | None) -> Iterator[str]:
    if use.earlier:
        yield f"{counted(use.earlier, 'request')} from before --since left out."
    if use.unknown_keys and named is None:
        yield f"{counted(use.unknown_keys, 'request')} not judged: their keys no longer work, or are unknown."
    if use.sampled and record.complete:
        yield "The log is a sample, and was treated as complete."
    elif use.sampled:
        yield "The log is a sample: requests may be missing from it. --assume-complete treats it as complete."
