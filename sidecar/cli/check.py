"""`sidecar check` and `sidecar schema`."""

import json
import os
from collections.abc import Sized
from dataclasses import asdict

import click

from sidecar.cli.options import config_or_exit
from sidecar.config.build.config import Config
from sidecar.config.build.modes import in_one_line, observing
from sidecar.config.errors import ConfigError, Problem
from sidecar.config.load import load, overrides_from
from sidecar.config.schema import json_schema
from sidecar.core.units import counted

_CONFIG_STATUS = 2
_WARNED_STATUS = 1


@click.command("check")
@click.option("--strict", is_flag=True, help="Exit with 1 if there are warnings.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "-c",
    "--config",
    envvar="SIDECAR_CONFIG",
    type=click.Path(),
    metavar="FILE",
    help="The same as FILE (SIDECAR_CONFIG).",
)
@click.argument("file", type=click.Path(), required=False)
@click.pass_context
def check_command(context: click.Context, file: str | None, config: str | None, as_json: bool, strict: bool) -> None:
    """Check a configuration file and print every problem at once.

    Without FILE it is that of -c, of SIDECAR_CONFIG, or ./sidecar.yaml. SIDECAR_* variables (SIDECAR_LISTEN, …)
    override the file, as they do for `sidecar serve`. Exits with 0 if the configuration is valid. Otherwise exits with
    2 and prints a line for each problem: FILE:LINE:COLUMN: path.of.value: what is wrong. Prints a warning for what is
    valid but hardly meant, such as a scope that no route requires, and a note of what is observed and not enforced.

    \b
    Example:
      sidecar check config.example.yaml
      sidecar check --strict sidecar.yaml
    """
    path, problems, warnings, summary = config_or_exit(file or config), tuple[Problem, ...](), tuple[Problem, ...](), ""
    observed: tuple[str, ...] = ()
    try:
        loaded = load(path, overrides=overrides_from(os.environ), environ=os.environ)
        warnings, summary, observed = tuple(loaded.warnings), _summary(loaded), observing(loaded)
    except ConfigError as error:
        problems = error.problems
    if as_json:
        told = {"config": path, "ok": not problems, "problems": [asdict(problem) for problem in problems]}
        told["warnings"] = [asdict(warning) for warning in warnings]
        told["observing"] = list(observed)
        click.echo(json.dumps(told, indent=2))
    else:
        for each in (*problems, *warnings):
            click.echo(str(each), err=True)
        if not problems:
            refused = strict and warnings
            click.echo(f"{path}: {'valid, but --strict takes no warnings' if refused else 'ok'} ({summary})")
            if observed:
                click.echo(f"{path}: note: only observed, not enforced: {in_one_line(observed)}", err=True)
    if problems or (strict and warnings):
        context.exit(_CONFIG_STATUS if problems else _WARNED_STATUS)


@click.command("schema")
def schema_command() -> None:
    """Print a JSON Schema of the configuration file, for editors.

    \b
    Example:
      sidecar schema > sidecar.schema.json
      and, as the first line of the YAML:
      # yaml-language-server: $schema=sidecar.schema.json
    """
    click.echo(json.dumps(json_schema(), indent=2))


def _summary(config: Config) -> str:
    parts: dict[str, Sized] = {
        "route": config.routes,
        "scope": config.catalogue.scopes,
        "quota": config.quotas,
        "plan": config.plans,
    }
    return ", ".join(counted(len(part), name) for name, part in parts.items())
