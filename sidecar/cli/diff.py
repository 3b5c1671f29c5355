"""`sidecar diff`: what changes between two configurations, and what that means for recorded requests."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import click

from sidecar.cli.options import Misuse, OneOf
from sidecar.cli.output import harmless, progress
from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError, Problem
from sidecar.config.load import load, overrides_from
from sidecar.rehearsal.diff.replay import Kind, Replay
from sidecar.rehearsal.diff.report import Diff, Replayed, as_json, as_markdown, as_text, compare
from sidecar.rehearsal.recorded import LogError, RecordedRequests, opened

_MEGABYTE: Final = 1_000_000
_FOUND, _BAD_INPUT = 1, 2
_NAMES: Final[Mapping[Kind, Sequence[str]]] = {
    "opened": ("any", "opens"),
    "closed": ("any", "closes"),
    "refused otherwise": ("any",),
}


@click.command("diff")
@click.argument("old", type=click.Path())
@click.argument("new", type=click.Path())
@click.option("--replay", "log", metavar="LOG", help="Judge the requests of this access log (JSON, gzip; - for stdin).")
@click.option("--json", "as_json_", is_flag=True, help="Print JSON.")
@click.option("--markdown", "as_markdown_", is_flag=True, help="Print Markdown, for a pull request's comment.")
@click.option(
    "--fail-on",
    "kinds",
    multiple=True,
    type=OneOf(["opens", "closes", "any", "nothing"]),
    help="Exit with 1 where something opens, closes, or changes at all. May be given twice. Default: opens and closes.",
)
@click.pass_context
def diff_command(
    context: click.Context,
    old: str,
    new: str,
    log: str | None,
    as_json_: bool,
    as_markdown_: bool,
    kinds: tuple[str, ...],
) -> None:
    """Show what a new configuration opens and closes.

    The effect on requests is compared, not the text: two files with the same meaning have no difference. With --replay,
    each request of a recorded access log is judged under both, with the key's recorded scopes, tenant and environment.
    Exits with 0 if nothing changed that --fail-on names, with 1 if something did, and with 2 if a file cannot be used.

    \b
    Example:
      git show main:sidecar.yaml > old.yaml
      sidecar diff old.yaml sidecar.yaml
      sidecar diff old.yaml sidecar.yaml --replay access.log.gz --markdown
    """
    if as_json_ and as_markdown_:
        raise Misuse("--json and --markdown contradict each other: give only one of them")
    form = "json" if as_json_ else "markdown" if as_markdown_ else None
    diff = compare(*_loaded(old, new))
    replayed = None if log is None else _replayed(diff, log)
    click.echo(_report(diff, replayed, form))
    if replayed is not None and replayed.problem:
        click.echo(f"Error: {replayed.log} {replayed.problem}", err=True)
        context.exit(_BAD_INPUT)
    if _is_found(diff, replayed, kinds or ("opens", "closes")):
        context.exit(_FOUND)


def _loaded(*paths: str) -> Iterable[Config]:
    """Prints all problems of all files, and exits with 2, if one is unusable."""
    configs: list[Config] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            configs.append(load(path, overrides=overrides_from(os.environ), environ=os.environ))
        except ConfigError as error:
            problems += error.problems
    if problems:
        for problem in dict.fromkeys(map(str, problems)):
            click.echo(problem, err=True)
        click.get_current_context().exit(_BAD_INPUT)
    return configs


def _replayed(diff: Diff, log: str) -> Replayed:
    """Raises Misuse if nothing of the log could be read."""
    replay, name, problem = Replay(diff.old, diff.new), "stdin" if log == "-" else harmless(log), ""
    with progress("Read", "megabyte") as report:
        try:
            with opened(log) as file:
                requests = RecordedRequests(file, progress=lambda read: report(read // _MEGABYTE))
                try:
                    for request in requests:
                        replay.add(request)
                except LogError as error:
                    problem = str(error)
        except LogError as error:
            raise Misuse(f"{name} {error}") from error
    counts = requests.counts
    if counts.requests == 0 and (counts.lines or problem):
        foreign = f"has no request of a JSON access log: line {counts.first_unread} is something else"
        raise Misuse(f"{name} {problem or foreign}")
    return Replayed(log=name, counts=counts, replay=replay, problem=problem)


def _report(diff: Diff, replayed: Replayed | None, form: str | None) -> str:
    match form:
        case "json":
            return json.dumps(as_json(diff, replayed), indent=2)
        case "markdown":
            return as_markdown(diff, replayed)
        case _:
            return as_text(diff, replayed)


def _is_found(diff: Diff, replayed: Replayed | None, kinds: Iterable[str]) -> bool:
    if "nothing" in kinds:
        return False
    found = {"any"} if diff.changes else set()
    found |= {effect for change in diff.changes for effect in change.effects}
    changed = {} if replayed is None else replayed.replay.changed
    found |= {name for kind, count in changed.items() if count.lines for name in _NAMES[kind]}
    return not found.isdisjoint(kinds)
