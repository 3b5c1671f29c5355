"""`sidecar routes from-openapi`, and what `sidecar check --openapi` adds to a check."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import click

from sidecar.cli.output import progress
from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError, Problem
from sidecar.core.units import counted
from sidecar.rehearsal.openapi.coverage import Finding, compare
from sidecar.rehearsal.openapi.description import Description, read_description
from sidecar.rehearsal.openapi.draft import Draft, DraftedRoute, draft

_UNUSABLE_STATUS = 2


def _path_prefix(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not (value.startswith("/") and value.isascii() and value.isprintable()):
        raise click.BadParameter("write a path such as /v1, or / for none", context, parameter)
    return value


base_path_option: Callable[[Any], Any] = click.option(
    "--base-path",
    callback=_path_prefix,
    metavar="PATH",
    help="Prefix of the paths that clients call. Default: from the document's servers.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A document compared with a configuration. With problems, it could not be read, and there are no findings."""

    document: str
    operations: int = 0
    problems: tuple[Problem, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def warnings(self) -> int:
        return sum(finding.is_warning for finding in self.findings)

    @property
    def summary(self) -> str:
        notes = len(self.findings) - self.warnings
        counts = [counted(self.operations, "operation"), counted(self.warnings, "warning"), counted(notes, "note")]
        return f"{self.document}: {', '.join(counts)}"

    def as_json(self) -> Mapping[str, Any]:
        return {
            "document": self.document,
            "operations": self.operations,
            "problems": [asdict(problem) for problem in self.problems],
            "findings": [_finding_as_json(finding) for finding in self.findings],
        }


def compared(document: str, config: Config | None, base_path: str | None) -> Comparison:
    """Without a valid configuration, only the document is checked."""
    with progress("Read", "operation") as report:
        try:
            description = read_description(document, base_path, progress=report)
        except ConfigError as error:
            return Comparison(document=document, problems=error.problems)
    number = len(description.operations)
    if config is None:
        return Comparison(document=document, operations=number)
    with progress("Compared", "operation") as report:
        findings = compare(description, config, progress=report)
    return Comparison(document=document, operations=number, findings=tuple(findings))


def _finding_as_json(finding: Finding) -> Mapping[str, Any]:
    return {
        "kind": finding.kind,
        "severity": "warning" if finding.is_warning else "note",
        "file": finding.place.file,
        "line": finding.place.line,
        "column": finding.place.column,
        "operation": finding.operation or None,
        "route": finding.route and {"name": finding.route.name, "where": finding.route.where},
        "message": finding.message,
    }


@click.group("routes")
def routes_group() -> None:
    """Draft routes from what describes an API."""


@routes_group.command("from-openapi")
@click.argument("file", type=click.Path())
@base_path_option
@click.option("--routes-only", is_flag=True, help="Print only `scopes` and `routes`, to add to a configuration.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; `yaml` in it is the draft.")
@click.pass_context
def from_openapi_command(
    context: click.Context, file: str, base_path: str | None, routes_only: bool, as_json: bool
) -> None:
    """Draft a configuration from an OpenAPI document.

    FILE is OpenAPI 2.0 (Swagger), 3.0, 3.1 or 3.2, as YAML or JSON, of up to 32 MiB. The draft has a route for every
    operation, and the catalogue of scopes. A route is public only if the document says so (`security: []`). Every other
    route needs a scope: one of the document's OAuth schemes, or TAG:read or TAG:write if it names none. If two paths
    overlap and neither is more specific, a route for the paths that they share requires what both require. A comment
    marks each route that is wider than its path.

    If FILE cannot be used, exits with 2 and prints a line for each problem.

    \b
    Example:
      sidecar routes from-openapi openapi.yaml > sidecar.yaml
      sidecar check --openapi openapi.yaml sidecar.yaml
    """
    try:
        with progress("Read", "operation") as report:
            description = read_description(file, base_path, progress=report)
        made = draft(description, routes_only=routes_only)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        context.exit(_UNUSABLE_STATUS)
    text = json.dumps(_draft_as_json(description, made), indent=2) if as_json else made.text
    click.echo(text, nl=as_json)


def _draft_as_json(description: Description, made: Draft) -> Mapping[str, Any]:
    return {
        "document": description.file,
        "title": description.title,
        "operations": len(description.operations),
        "scopes": list(made.scopes),
        "routes": [_route_as_json(each) for each in made.routes],
        "tie_breakers": [_route_as_json(each) for each in made.tie_breakers],
        "remarks": list(map(str, description.remarks)),
        "yaml": made.text,
    }


def _route_as_json(each: DraftedRoute) -> Mapping[str, Any]:
    return {
        "name": each.name,
        "public": each.requirement.public,
        "scopes": sorted(each.requirement.any_scopes),
        "all_scopes": sorted(each.requirement.all_scopes),
        "remarks": list(each.above),
    }
