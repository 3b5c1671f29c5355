"""`sidecar check` and `sidecar schema`."""

import json
import os
from collections.abc import Sized
from dataclasses import asdict

import click

from sidecar.cli.options import config_or_exit
from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError, Problem
from sidecar.config.load import load, overrides_from
from sidecar.config.schema import json_schema
from sidecar.core.units import counted

_CONFIG_STATUS = 2


@click.command("check")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-c", "--config", envvar="SIDECAR_CONFIG", metavar="FILE", help="The same as FILE (SIDECAR_CONFIG).")
@click.argument("file", type=click.Path(), required=False)
@click.pass_context
def check_command(context: click.Context, file: str | None, config: str | None, as_json: bool) -> None:
    """Check a configuration file and print every problem at once.

    Without FILE it is that of -c, of SIDECAR_CONFIG, or ./sidecar.yaml. SIDECAR_* variables (SIDECAR_LISTEN, …)
    override the file, as they do for `sidecar serve`. Exits with 0 if the configuration is valid. Otherwise exits with
    2 and prints a line for each problem: FILE:LINE:COLUMN: path.of.value: what is wrong.

    \b
    Example:
      sidecar check config.example.yaml
    """
    path, problems, summary = config_or_exit(file or config), tuple[Problem, ...](), ""
    try:
        summary = _summary(load(path, overrides=overrides_from(os.environ), environ=os.environ))
    except ConfigError as error:
        problems = error.problems
    if as_json:
        told = {"config": path, "ok": not problems, "problems": [asdict(problem) for problem in problems]}
        click.echo(json.dumps(told, indent=2))
    elif problems:
        click.echo("\n".join(map(str, problems)), err=True)
    else:
        click.echo(f"{path}: ok ({summary})")
    if problems:
        context.exit(_CONFIG_STATUS)


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
