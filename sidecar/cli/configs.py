"""Reading the configuration for a command, and saying what is wrong with it."""

import os
import sys
from collections.abc import Callable, Mapping

import click

from sidecar.config.errors import ConfigError
from sidecar.config.load import load
from sidecar.config.overrides import overrides_from
from sidecar.config.settings import Config

config_option = click.option(
    "-c",
    "--config",
    "config_path",
    metavar="FILE",
    required=True,
    envvar="SIDECAR_CONFIG",
    help="Configuration (SIDECAR_CONFIG).",
)


def reader_of(path: str, options: Mapping[str, str | None]) -> Callable[[], Config]:
    """Reads the configuration, each time anew. Options win over SIDECAR_* variables, and these over the file.

    It raises ConfigError.
    """
    given = {name: value for name, value in options.items() if value is not None}
    overrides = {**overrides_from(os.environ), **given}
    return lambda: load(path, overrides=overrides, environ=os.environ)


def load_or_exit(path: str, options: Mapping[str, str | None]) -> Config:
    """As `reader_of` reads it. Exits with 2 and every problem on stderr."""
    try:
        return reader_of(path, options)()
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(2)
