"""`sidecar test`: policy tests, tables of requests with their expected outcome."""

import gc
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import click

from sidecar.cli.options import Failure, Misuse, WholeNumber, config_here, shortened
from sidecar.cli.output import harmless, progress
from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError
from sidecar.config.load import load, overrides_from
from sidecar.core.units import counted
from sidecar.limiter.memory import MemoryLimiter
from sidecar.rehearsal.policy_tests.comparison import Difference
from sidecar.rehearsal.policy_tests.coverage import Coverage, Reached
from sidecar.rehearsal.policy_tests.results import (
    FileResults,
    Result,
    as_json,
    as_junit,
    gaps_by_kind,
    results_of,
    selected,
)
from sidecar.rehearsal.policy_tests.suite import Suite, read_suite

_FAILED_STATUS: Final = 1
_MISUSE_STATUS: Final = 2
_SIDE_BY_SIDE: Final = 44
"""Longest value that is shown next to another; longer ones are shown below each other."""
_BATCH: Final = 1_000


@click.command("test")
@click.argument("files", type=click.Path(), nargs=-1, required=True, metavar="FILE...")
@click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(),
    metavar="FILE",
    help="Test this configuration instead of those that the files name. Default for a file that names none: "
    "SIDECAR_CONFIG, or ./sidecar.yaml.",
)
@click.option("-k", "text", default="", metavar="TEXT", help="Only cases with TEXT in their name, group or FILE:LINE.")
@click.option("--coverage", is_flag=True, help="List the routes, scopes and reasons that no test reaches.")
@click.option(
    "--coverage-minimum",
    "minimum",
    type=WholeNumber(min=0, max=100),
    metavar="PERCENT",
    help="Exit with 1 if less is covered; implies --coverage.",
)
@click.option("--junit", "junit_path", type=click.Path(), metavar="FILE", help="Write the results there as JUnit XML.")
@click.option("--json", "as_json_", is_flag=True, help="Print JSON.")
@click.pass_context
def test_command(
    context: click.Context,
    files: Sequence[str],
    config_path: str | None,
    text: str,
    coverage: bool,
    minimum: int | None,
    junit_path: str | None,
    as_json_: bool,
) -> None:
    """Test how a configuration decides on requests.

    Each FILE names a configuration, made-up keys, and cases: a request, a key, and the expected outcome. The code that
    serves requests decides; no store is opened, and nothing is sent. A failed case is shown with the expected and the
    actual outcome, and the line of the rule that decided. Exits with 0 if all pass, with 1 if a case fails, with 2 if a
    file is wrong. See `sidecar schema --tests` for editors.

    \b
    Example:
      sidecar test policy.tests.yml
      sidecar test tests/*.yml --coverage --junit report.xml
    """
    with _without_collections():
        suites = _read_all(files, config_path)
        reached: dict[str, tuple[Config, Reached]] = {}
        found = [_run(suite, text, reached) for suite in suites]
    if not any(file.results for file in found):
        raise Misuse(f"no case has {shortened(text)} in its name, group or FILE:LINE")
    asked = coverage or minimum is not None
    covered = [noted.coverage(config) for config, noted in reached.values()] if asked else None
    if junit_path is not None:
        _write(junit_path, as_junit(found))
    if as_json_:
        click.echo(json.dumps(as_json(found, covered), indent=2))
    else:
        _print(found, covered)
    if _is_below(covered or (), minimum) or any(file.failed for file in found):
        context.exit(_FAILED_STATUS)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Tens of thousands of cases live until the end: the garbage collector would scan them again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _read_all(files: Sequence[str], config_path: str | None) -> list[Suite]:
    """Read all files. If any is invalid, print all problems to stderr and exit with 2."""
    loaded: dict[tuple[str, tuple[tuple[str, str], ...]], Config] = {}

    def load_once(path: str, variables: Mapping[str, str]) -> Config:
        key = (path, tuple(sorted(variables.items())))
        if key not in loaded:
            loaded[key] = load(path, overrides=overrides_from(variables), environ=variables)
        return loaded[key]

    suites, problems = [], {}
    otherwise = config_here(os.environ.get("SIDECAR_CONFIG") or None)
    for file in dict.fromkeys(files):
        try:
            suites.append(
                read_suite(file, config_path=config_path, otherwise=otherwise, load=load_once, environ=os.environ)
            )
        except ConfigError as error:
            problems.update(dict.fromkeys(map(str, error.problems)))
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        click.get_current_context().exit(_MISUSE_STATUS)
    return suites


def _run(suite: Suite, text: str, reached: dict[str, tuple[Config, Reached]]) -> FileResults:
    _, noted = reached.setdefault(suite.config.path, (suite.config, Reached()))
    results: list[Result] = []
    began = time.perf_counter()
    with progress("Tested", "case") as done:
        for result in results_of(suite, MemoryLimiter, wanted=selected(suite, text), reached=noted):
            results.append(result)
            if not len(results) % _BATCH:
                done(len(results))
    seconds = time.perf_counter() - began
    return FileResults(path=suite.path, config=suite.config.path, results=results, seconds=seconds)


def _write(path: str, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from error


def _is_below(covered: Sequence[Coverage], minimum: int | None) -> bool:
    """Whether coverage is too low for any configuration; reports it."""
    below = [one for one in covered if minimum is not None and one.percent < minimum]
    for one in below:
        click.echo(
            f"Error: {harmless(one.config)}: {one.percent:.1f} % is reached, which is less than {minimum} %", err=True
        )
    return bool(below)


# For people.


def _print(files: Sequence[FileResults], covered: Sequence[Coverage] | None) -> None:
    for file in files:
        for result in file.failed:
            click.echo("\n".join((*_failure(result), "")))
    for one in covered or ():
        click.echo("\n".join((*_coverage(one), "")))
    total, failed = sum(len(file.results) for file in files), sum(len(file.failed) for file in files)
    colour, word = ("red", f"{counted(failed, 'case')} failed") if failed else ("green", "all passed")
    seconds = sum(file.seconds for file in files)
    summary = f"{counted(total, 'case')} in {counted(len(files), 'file')}: {word}"
    click.echo(click.style(f"{summary} ({seconds:.2f} s)", fg=colour))


def _failure(result: Result) -> Iterator[str]:
    yield f"{click.style('FAILED', fg='red')} {harmless(result.case.where)}  {harmless(result.title)}"
    beside = [one for one in result.differences if max(len(one.expected), len(one.got)) <= _SIDE_BY_SIDE]
    if beside:
        yield from _table(beside)
    for one in result.differences:
        if one not in beside:
            yield f"  {harmless(one.what)}"
            yield f"    expected  {harmless(one.expected)}"
            yield f"    got       {harmless(one.got)}"
    for rule in result.rules:
        yield f"  rule  {harmless(f'{rule.where}  ' if rule.where else '')}{harmless(rule.text)}"
    for sentence in result.why:
        yield f"  why   {harmless(sentence)}"


def _table(differences: Sequence[Difference]) -> Iterator[str]:
    rows = [("", "expected", "got"), *differences]
    first, second = (max(len(harmless(row[column])) for row in rows) for column in (0, 1))
    for what, expected, got in rows:
        yield f"  {harmless(what):<{first}}  {harmless(expected):<{second}}  {harmless(got)}".rstrip()


def _coverage(covered: Coverage) -> Iterator[str]:
    share = f"{covered.percent:.0f} % ({covered.reached} of {covered.total})"
    yield f"Coverage of {harmless(covered.config)}: {share}"
    for kind, gaps in gaps_by_kind(covered.gaps).items():
        width = max(len(gap.name) for gap in gaps)
        for gap in gaps:
            where = f"  ({gap.where})" if gap.where else ""
            yield harmless(f"  {kind:<6}  {gap.name:<{width}}  {gap.missing}{where}")
