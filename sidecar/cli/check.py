"""`sidecar check` and `sidecar schema`."""

import json
import os
from collections.abc import Mapping, Sized
from dataclasses import asdict, dataclass
from typing import Any

import click

from sidecar.cli.openapi import Comparison, base_path_option, compared
from sidecar.cli.options import Misuse, config_or_exit, config_path_option
from sidecar.cli.output import harmless
from sidecar.config.build.config import Config
from sidecar.config.build.modes import in_one_line, observing
from sidecar.config.errors import ConfigError, Problem
from sidecar.config.load import load, overrides_from
from sidecar.config.schema import json_schema
from sidecar.core.units import counted
from sidecar.rehearsal.policy_tests.document import Document as TestDocument

_CONFIG_STATUS = 2
_WARNED_STATUS = 1


@click.command("check")
@click.option("--strict", is_flag=True, help="Exit with 1 if there are warnings.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_path_option("The same as FILE (SIDECAR_CONFIG).")
@click.option("--openapi", type=click.Path(), metavar="DOCUMENT", help="Compare the routes with an OpenAPI document.")
@base_path_option
@click.argument("file", type=click.Path(), required=False)
@click.pass_context
def check_command(
    context: click.Context,
    file: str | None,
    config: str | None,
    as_json: bool,
    strict: bool,
    openapi: str | None,
    base_path: str | None,
) -> None:
    """Check a configuration file and print every problem at once.

    Without FILE, it checks the file of -c, of SIDECAR_CONFIG, or ./sidecar.yaml. SIDECAR_* variables (SIDECAR_LISTEN,
    …) override the file, as they do for `sidecar serve`. Exits with 0 if the configuration is valid. Otherwise exits
    with 2 and prints a line for each problem: FILE:LINE:COLUMN: path.of.value: what is wrong. Prints a warning for
    valid values that are probably mistakes, such as a scope that no route requires, and a note of rules that are only
    observed and not enforced.

    With --openapi, it also warns of operations of the document that no route covers, routes that match no operation,
    operations whose `security` differs from their route, and paths that two operations share. Notes name what is read
    differently from how it is written, such as a parameter that may contain slashes; --strict allows notes.

    \b
    Example:
      sidecar check config.example.yaml
      sidecar check --strict sidecar.yaml
      sidecar check --openapi openapi.yaml sidecar.yaml
    """
    if base_path is not None and openapi is None:
        raise Misuse("--base-path is for --openapi DOCUMENT: name one, or leave it out")
    checked = _checked(config_or_exit(file or config), openapi, base_path)
    if as_json:
        click.echo(json.dumps(checked.as_json(), indent=2))
    else:
        _print(checked, strict)
    if checked.problems or (strict and checked.warned):
        context.exit(_CONFIG_STATUS if checked.problems else _WARNED_STATUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """What a check found."""

    path: str
    config: Config | None
    own_problems: tuple[Problem, ...] = ()
    comparison: Comparison | None = None

    @property
    def problems(self) -> tuple[Problem, ...]:
        return (*self.own_problems, *(self.comparison.problems if self.comparison else ()))

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return self.config.warnings if self.config else ()

    @property
    def warned(self) -> bool:
        return bool(self.warnings or (self.comparison and self.comparison.warnings))

    def as_json(self) -> Mapping[str, Any]:
        report: dict[str, Any] = {"config": self.path, "ok": not self.problems}
        report["problems"] = [asdict(problem) for problem in self.own_problems]
        report["warnings"] = [asdict(warning) for warning in self.warnings]
        report["observing"] = [] if self.config is None else list(observing(self.config))
        return report if self.comparison is None else {**report, "openapi": self.comparison.as_json()}


def _checked(path: str, openapi: str | None, base_path: str | None) -> _Checked:
    config, problems = None, tuple[Problem, ...]()
    try:
        config = load(path, overrides=overrides_from(os.environ), environ=os.environ)
    except ConfigError as error:
        problems = error.problems
    comparison = None if openapi is None else compared(openapi, config, base_path)
    return _Checked(path=path, config=config, own_problems=problems, comparison=comparison)


def _print(checked: _Checked, strict: bool) -> None:
    findings = checked.comparison.findings if checked.comparison else ()
    for each in (*checked.problems, *checked.warnings, *findings):
        click.echo(str(each), err=True)
    if checked.config is None or checked.problems:
        return
    path, refused = harmless(checked.path), strict and checked.warned
    verdict = "valid, but --strict allows no warnings" if refused else "ok"
    click.echo(f"{path}: {verdict} ({_summary(checked.config)})")
    if observed := observing(checked.config):
        click.echo(f"{path}: note: only observed, not enforced: {harmless(in_one_line(observed))}", err=True)
    if checked.comparison is not None:
        click.echo(harmless(checked.comparison.summary))


@click.command("schema")
@click.option("--tests", is_flag=True, help="Print the schema of policy test files (`sidecar test`).")
def schema_command(tests: bool) -> None:
    """Print a JSON Schema of the configuration file, for editors.

    \b
    Example:
      sidecar schema > sidecar.schema.json
      and, as the first line of the YAML:
      # yaml-language-server: $schema=sidecar.schema.json
    """
    schema = json_schema(TestDocument, "sidecar policy tests") if tests else json_schema()
    click.echo(json.dumps(schema, indent=2))


def _summary(config: Config) -> str:
    parts: dict[str, Sized] = {
        "route": config.routes,
        "scope": config.catalogue.scopes,
        "quota": config.quotas,
        "plan": config.plans,
    }
    return ", ".join(counted(len(part), name) for name, part in parts.items())
