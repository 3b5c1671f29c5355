"""Shared by the commands: options, parsing of option values, and error reports."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, ClassVar, Final

import click

from sidecar.cli.output import harmless
from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError
from sidecar.config.load import load, overrides_from
from sidecar.core.apikey import beginning, looks_secret, pasted, without_keys
from sidecar.core.units import microseconds, parse_duration
from sidecar.keys.lifecycle import MissingPepper
from sidecar.keys.ports import KeyConflict, StoreUnavailable
from sidecar.keys.validation import InvalidKey

# Errors: one line on stderr for each problem and an exit status, never a traceback.


class Failure(click.ClickException):
    """The command failed. Exit status 1."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def show(self, file: IO[Any] | None = None) -> None:
        for problem in self.problems:
            click.echo(f"Error: {harmless(problem)}", file=file, err=file is None)


class Misuse(Failure):
    """The arguments, the configuration or the environment are wrong. Exit status 2."""

    exit_code: ClassVar[int] = 2

    def __init__(self, *problems: str) -> None:
        super().__init__(*map(without_keys, problems))


@contextmanager
def reported() -> Iterator[None]:
    """Turn the expected exceptions of the block into a Failure or Misuse."""
    try:
        yield
    except InvalidKey as error:
        raise Misuse(*error.problems) from error
    except (StoreUnavailable, KeyConflict, MissingPepper) as error:
        raise Failure(str(error)) from error


# The configuration of a command.


Command = Callable[..., Any]

_HERE: Final = "sidecar.yaml"
_CONFIG_HELP: Final = "Configuration file (SIDECAR_CONFIG). Default: ./sidecar.yaml."


def config_here(config: str | None) -> str | None:
    """Return the configuration that an option or variable names, or the one in this folder, or None."""
    return _HERE if config is None and os.path.exists(_HERE) else config


def config_or_exit(config: str | None) -> str:
    """As `config_here`. Raises Misuse if there is none."""
    found = config_here(config)
    if found is None:
        raise Misuse("no configuration is named: give -c FILE, set SIDECAR_CONFIG, or run where a sidecar.yaml is")
    return found


def config_path_option(text: str = _CONFIG_HELP) -> Callable[[Command], Command]:
    """The option `-c` as it was given, for commands that need no configuration."""
    return click.option("-c", "--config", envvar="SIDECAR_CONFIG", type=click.Path(), metavar="FILE", help=text)


config_option = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(),
    metavar="FILE",
    envvar="SIDECAR_CONFIG",
    callback=lambda context, parameter, value: config_or_exit(value),
    help=_CONFIG_HELP,
)


def reader_of(path: str, options: Mapping[str, str | None]) -> Callable[[], Config]:
    """Return a function that reads the configuration again at each call. It raises ConfigError.

    Options override SIDECAR_* variables, and variables override the file.
    """
    given = {name: value for name, value in options.items() if value is not None}
    overrides = {**overrides_from(os.environ), **given}
    return lambda: load(path, overrides=overrides, environ=os.environ)


def load_or_exit(path: str, options: Mapping[str, str | None]) -> Config:
    """Read the configuration as `reader_of` does. If it is wrong, print every problem to stderr and exit with 2."""
    try:
        return reader_of(path, options)()
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(2)


# Options that several commands have.


def store_options(command: Command) -> Command:
    """Add the options that select the store."""
    options = (
        click.option(
            "--store",
            envvar="SIDECAR_STORE",
            metavar="URL",
            help="Key store, as sqlite:///path or postgresql://user@host/database; overrides the configuration.",
        ),
        config_path_option(),
    )
    for option in options:
        command = option(command)
    return command


def from_store(command: Command) -> Command:
    """Add the options that select the store and the output format."""
    return store_options(click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command))


def changing(command: Command) -> Command:
    """Add the options of a command that changes a key."""
    return from_store(click.option("-v", "--verbose", is_flag=True, help="Print the key's record as well.")(command))


# Option values.


USUAL: Final = {
    **dict.fromkeys(("add", "create", "generate", "new"), "issue"),
    **dict.fromkeys(("delete", "destroy", "remove", "rm"), "revoke"),
    **dict.fromkeys(("edit", "modify", "update"), "change"),
    **dict.fromkeys(("describe", "get", "inspect"), "show"),
    **dict.fromkeys(("lint", "validate"), "check"),
    **dict.fromkeys(("run", "start"), "serve"),
    "ls": "list",
}
"""What other programs call a command."""


class Group(click.Group):
    """A group of commands that knows their usual names."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        meant = USUAL.get(args[0])
        if args[0] not in self.commands and meant in self.commands:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {meant!r}?")
        return super().resolve_command(ctx, args)


class OneOf(click.Choice[str]):
    """One of some words. Anything else is refused with the words to write."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"write one of {', '.join(self.choices)}, not {shortened(str(value))}", param, ctx)


class WholeNumber(click.IntRange):
    """A whole number from `min` on, up to `max` if there is one. Anything else is refused with what to write."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            span = f"of {self.min:,} or more" if self.max is None else f"from {self.min:,} to {self.max:,}"
            self.fail(f"write a whole number {span}, not {shortened(str(value))}", param, ctx)


def value_refused(error: click.BadParameter) -> Misuse:
    """The error in the same form as all others: the option, what is wrong, and what to write."""
    hint = error.param.get_error_hint(error.ctx) if error.param is not None and error.ctx is not None else ""
    name = (hint or str(error.param_hint or "")).replace("'", "")
    return Misuse(f"{name}: {error.message}" if name else error.message)


def shortened(text: str) -> str:
    """Return the beginning of an argument in quotes, for an error message: it may be a key, or a part of one."""
    return repr(beginning(text))


def key_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Take an id, a stored prefix, or `-`, without quotes around it. Raises Misuse for what may be a plaintext."""
    if value is None or value == "-":
        return value
    name = pasted(value)
    if looks_secret(name) or looks_secret(value):
        raise Misuse("every process can read a command line: pass - instead of the key, and send the key on stdin")
    return name


def search_text(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Take printable text that is not a plaintext."""
    if value is not None and looks_secret(pasted(value)):
        raise Misuse("every process can read a command line: to find a key, send it to sidecar keys show -")
    return printable(context, parameter, value)


def pairs(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Parse `k=v` entries into a mapping. Each name may be given once."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or name in found:
            what = "is given twice" if name in found else "has no =: write NAME=VALUE"
            raise click.BadParameter(f"{shortened(name)} {what}", context, parameter)
        found[name] = text
    return found


def limits(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, int]:
    """Parse `name=100` entries into a mapping."""
    found = pairs(context, parameter, values)
    for name, limit in found.items():
        if not re.fullmatch("[0-9]{1,18}", limit):
            raise click.BadParameter(f"the limit of {shortened(name)} must be a whole number", context, parameter)
    return {name: int(limit) for name, limit in found.items()}


def moment(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Return the microseconds of `90d` from now, of a date (00:00 UTC), or of a time in RFC 3339."""
    if value is None:
        return None
    try:
        if re.match("[0-9]{4}-", value):
            return microseconds(value)
        return int((time.time() + parse_duration(value)) * 1_000_000)
    except ValueError as error:
        message = f"{shortened(value)} is neither a duration such as 90d nor a date such as 2027-01-31"
        raise click.BadParameter(message, context, parameter) from error


def printable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Accept only printable text."""
    if value is not None and not value.isprintable():
        raise click.BadParameter("must not contain unprintable characters", context, parameter)
    return value


def seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Parse a duration such as `90d` into seconds."""
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{shortened(value)} {error}", context, parameter) from error


def since(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Return the microseconds of `7d` ago, of a date (00:00 UTC), or of a time in RFC 3339."""
    now = int(time.time() * 1_000_000)  # Not later than that of `moment`, so that `0s` is never in the future.
    found = moment(context, parameter, value)
    if found is None or value is None or re.match("[0-9]{4}-", value):
        return found
    return now * 2 - found
