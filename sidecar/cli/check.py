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


@click.command("check")
@click.argument("file", type=click.Path())
@click.pass_context
def check_command(context: click.Context, file: str) -> None:
    """Check a configuration file and print every problem at once.

    SIDECAR_* variables (SIDECAR_LISTEN, …) override the file, as they do for `sidecar serve`. Exits with 0 if the
    configuration is valid. Otherwise exits with 2 and prints a line for each problem:
    FILE:LINE:COLUMN: path.of.value: what is wrong.

    \b
    Example:
      sidecar check config.example.yaml
    """
    try:
        config = load(file, overrides=overrides_from(os.environ), environ=os.environ)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        context.exit(_CONFIG_STATUS)
    click.echo(f"{file}: ok ({_summary(config)})")


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
