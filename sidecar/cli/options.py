"""Options and arguments of `sidecar keys`, from text to values."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, ClassVar

import click

from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError
from sidecar.config.load import load, overrides_from
from sidecar.core.units import microseconds, parse_duration
from sidecar.keys.lifecycle import MissingPepper
from sidecar.keys.ports import KeyConflict, StoreUnavailable
from sidecar.keys.validation import InvalidKey

# What went wrong, as one clear line a problem on stderr and an exit status; never a traceback.


class Failure(click.ClickException):
    """It could not be done. Exit status 1."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def show(self, file: IO[Any] | None = None) -> None:
        for problem in self.problems:
            click.echo(f"Error: {problem}", file=file, err=file is None)


class Misuse(Failure):
    """It was asked for in the wrong way: arguments, configuration or environment. Exit status 2."""

    exit_code: ClassVar[int] = 2


@contextmanager
def reported() -> Iterator[None]:
    """Expected exceptions inside become a Failure or Misuse."""
    try:
        yield
    except InvalidKey as error:
        raise Misuse(*error.problems) from error
    except (StoreUnavailable, KeyConflict, MissingPepper) as error:
        raise Failure(str(error)) from error


# Reading the configuration for a command, and saying what is wrong with it.


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


Command = Callable[..., Any]


def store_options(command: Command) -> Command:
    """Options that say which store."""
    options = (
        click.option(
            "--store",
            envvar="SIDECAR_STORE",
            metavar="URL",
            help="sqlite:///path; wins over that of the configuration.",
        ),
        click.option("-c", "--config", envvar="SIDECAR_CONFIG", metavar="FILE", help="Configuration (SIDECAR_CONFIG)."),
    )
    for option in options:
        command = option(command)
    return command


def from_store(command: Command) -> Command:
    """Options that say which store, and how to print."""
    return store_options(click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command))


def pairs(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """`k=v` as a mapping; a name may be given once."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or name in found:
            what = "is given twice" if name in found else "has no ="
            raise click.BadParameter(f"{name!r} {what}", context, parameter)
        found[name] = text
    return found


def limits(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, int]:
    """`name=100` as a mapping."""
    found = pairs(context, parameter, values)
    for name, limit in found.items():
        if not re.fullmatch("[0-9]{1,18}", limit):
            raise click.BadParameter(f"the limit of {name!r} must be a whole number", context, parameter)
    return {name: int(limit) for name, limit in found.items()}


def moment(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Microseconds of `90d` from now, of 00:00 UTC of a date, or of a time in RFC 3339."""
    if value is None:
        return None
    try:
        if re.match("[0-9]{4}-", value):
            return microseconds(value)
        return int((time.time() + parse_duration(value)) * 1_000_000)
    except ValueError as error:
        message = f"{value!r} is neither a duration such as 90d nor a date such as 2027-01-31"
        raise click.BadParameter(message, context, parameter) from error


def printable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Text that the store can look for."""
    if value is not None and not value.isprintable():
        raise click.BadParameter("it holds characters that cannot be printed", context, parameter)
    return value


def seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Seconds of `90d`."""
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}", context, parameter) from error


def since(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Microseconds of `7d` ago, of 00:00 UTC of a date, or of a time in RFC 3339."""
    found = moment(context, parameter, value)
    if found is None or value is None or re.match("[0-9]{4}-", value):
        return found
    return int(time.time() * 1_000_000) * 2 - found
