"""`sidecar why`: explains a past decision from the access log."""

import asyncio
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from sidecar.app import make_gate
from sidecar.cli.options import Failure, Misuse, config_option, load_or_exit, printable, shortened
from sidecar.cli.output import harmless, progress
from sidecar.config.build.config import Config
from sidecar.core.apikey import Hasher
from sidecar.core.units import counted
from sidecar.gate.explain import Line, redacted
from sidecar.gate.gate import Gate
from sidecar.keys.cache import KeyFinder
from sidecar.limiter.port import Limiter
from sidecar.rehearsal.past_decision import PastDecision, past_decision
from sidecar.rehearsal.recorded import LineCounts, LogError, RecordedRequest, RecordedRequests, opened

_WIDTH = 14


@click.command("why")
@config_option
@click.argument("request_id", metavar="ID", callback=printable)
@click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="FILE",
    help="Access log in JSON, plain or gzip, or - for stdin. May be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list with an object for each request.")
def why_command(config_path: str, request_id: str, logs: Sequence[str], as_json: bool) -> None:
    """Show why a past request was refused or let through.

    ID is the id of the request, which every response carries (X-Request-Id). Clients may send ids of their own, and use
    one several times: every request with the id is shown, as the log recorded it. Below it is today's decision of the
    configuration on the same request by a key with the same rights, with the routes that were considered. Nothing is
    sent, and no quota is used up. Exits with 1 if no request has the id, with 2 if a log cannot be read.

    \b
    Example:
      sidecar why 9b2c41d07f3e4a55 --log access.jsonl
      kubectl logs deploy/api -c sidecar | sidecar why 9b2c41d07f3e4a55 -c sidecar.yaml --log -
    """
    if not logs:
        raise Misuse("no access log is named: give --log FILE, or --log - for stdin")
    if list(logs).count("-") > 1:
        raise Misuse("--log: stdin can be read only once")
    config = load_or_exit(config_path, {})
    if not request_id:
        raise Misuse("the id is empty: take it from the response's header")
    if redacted(config, request_id) != request_id:
        raise Misuse("this looks like an API key, and not like the id of a request: logs hold [redacted] in its place")

    def gate_of(keys: KeyFinder, limiter: Limiter) -> Gate:
        return make_gate(config, keys, limiter, Hasher(()))

    show, searched = _Json() if as_json else _Text(), LineCounts()
    try:
        for record in _matches(request_id, logs, searched):
            show(record, config, asyncio.run(past_decision(record, config, gate_of, randbelow=secrets.randbelow)))
    finally:
        show.end()
    if not show.shown:
        problem = Failure if searched.requests else Misuse
        raise problem(_not_found(request_id, logs, searched))


def _matches(request_id: str, logs: Sequence[str], searched: LineCounts) -> Iterator[RecordedRequest]:
    """Yield the requests with this id, and count all of them in `searched`."""
    for path in logs:
        try:
            with opened(path) as file, progress("Searched", "request") as report:
                for record in RecordedRequests(file, progress=lambda _: report(searched.requests)):
                    searched.requests += 1
                    if record.request_id == request_id:
                        yield record
        except LogError as error:
            raise Misuse(f"{'stdin' if path == '-' else harmless(path)} {error}") from None


def _not_found(request_id: str, logs: Sequence[str], counts: LineCounts) -> str:
    where = ", ".join("stdin" if path == "-" else harmless(path) for path in logs)
    if not counts.requests:
        return f"{where}: no line is of an access log in JSON: set access_log: json, and give that log"
    return (
        f"no request {shortened(request_id)} among {counted(counts.requests, 'request')} in {where}: give older logs, "
        "too (--log access.jsonl.1.gz), take the id from the response's header, and note that the log has no malformed "
        "requests, and of those that went well only the share that sample_successes says"
    )


class _Text:
    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, record: RecordedRequest, config: Config, decision: PastDecision) -> None:
        if self.shown:
            click.echo("")
        self.shown += 1
        lines = [*decision.then, Line("", ""), Line("today", decision.verdict), *decision.now]
        click.echo("\n".join(harmless(f"{label:<{_WIDTH}}{text}").rstrip() for label, text in lines))

    def end(self) -> None:
        if self.shown > 1:
            click.echo(f"\n{self.shown} requests had this id: clients may send the same one again.")


class _Json:
    """A JSON list, of which only one object is in memory at a time."""

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, record: RecordedRequest, config: Config, decision: PastDecision) -> None:
        click.echo("[" if not self.shown else ",")
        self.shown += 1
        click.echo(json.dumps(_as_json(record, config, decision), indent=2), nl=False)

    def end(self) -> None:
        click.echo("\n]" if self.shown else "[]")


def _as_json(record: RecordedRequest, config: Config, decision: PastDecision) -> dict[str, Any]:
    texts = {"request_id": record.request_id, "method": record.method, "path": record.path_alone}
    names = ("time", "key_id", "route", "status", "reason", "would_deny", "quota", "limit", "retry_after", "config")
    return {
        **{name: redacted(config, text) for name, text in texts.items()},
        **{name: getattr(record, name) for name in names},
        "cut": record.cut,
        "then": _lines(decision.then),
        "now": _lines(decision.now),
        "otherwise": decision.otherwise,
        "verdict": decision.verdict,
    }


def _lines(lines: Iterable[Line]) -> list[dict[str, str]]:
    return [{"label": line.label, "text": line.text} for line in lines]
