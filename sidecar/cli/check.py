"""`sidecar check` and `sidecar schema`."""

import json
import os
from collections.abc import Sized

import click

from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError
from sidecar.config.load import load, overrides_from
from sidecar.config.schema import json_schema
from sidecar.core.units import counted

_CONFIG_STATUS = 2
_WARNED_STATUS = 1


@click.command("check")
@click.argument("file", type=click.Path())
@click.option("--strict", is_flag=True, help="Exit with 1 if there are warnings.")
@click.pass_context
def check_command(context: click.Context, file: str, strict: bool) -> None:
    """Check a configuration file and print every problem at once.

    SIDECAR_* variables (SIDECAR_LISTEN, …) override the file, as they do for `sidecar serve`. Exits with 0 if the
    configuration is valid. Otherwise exits with 2 and prints a line for each problem:
    FILE:LINE:COLUMN: path.of.value: what is wrong. Prints a warning for what is valid but hardly meant, such as a scope
    that no route requires.

    \b
    Example:
      sidecar check config.example.yaml
      sidecar check --strict sidecar.yaml
    """
    try:
        config = load(file, overrides=overrides_from(os.environ), environ=os.environ)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        context.exit(_CONFIG_STATUS)
    for warning in config.warnings:
        click.echo(str(warning), err=True)
    click.echo(f"{file}: ok ({_summary(config)})")
    if strict and config.warnings:
        context.exit(_WARNED_STATUS)


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
