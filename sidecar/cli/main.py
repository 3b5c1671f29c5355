"""The command `sidecar`. Each subcommand is a module that is imported only when it is called."""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, Final, NoReturn

import click

from sidecar import __version__

_COMMANDS: Final = {
    "serve": ("sidecar.cli.serve", "serve_command"),
    "drain": ("sidecar.cli.serve", "drain_command"),
    "check": ("sidecar.cli.check", "check_command"),
    "routes": ("sidecar.cli.openapi", "routes_group"),
    "schema": ("sidecar.cli.check", "schema_command"),
    "test": ("sidecar.cli.test", "test_command"),
    "keys": ("sidecar.cli.keys", "keys_group"),
    "store": ("sidecar.cli.store", "store_group"),
    "admin": ("sidecar.cli.admin", "admin_group"),
    "audit": ("sidecar.cli.store", "audit_group"),
    "explain": ("sidecar.cli.explain", "explain_command"),
    "diff": ("sidecar.cli.diff", "diff_command"),
    "why": ("sidecar.cli.why", "why_command"),
    "suggest": ("sidecar.cli.suggest", "suggest_command"),
    "doctor": ("sidecar.cli.explain", "doctor_command"),
    "demo": ("sidecar.cli.demo", "demo_command"),
}


_OPTIONS: Final = {"help": "--help", "version": "--version"}
"""Common commands of other programs."""


def open_standard_streams() -> None:
    """Open /dev/null for standard streams that are closed.

    Otherwise the next file would get their number: text for stderr would end up in the store, and libuv aborts the
    process when it closes a file with such a low number.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number, which is this one: those below it are open by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for good


_NOT_WRITTEN: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def output_failed(error: BaseException) -> bool:
    """Whether `error` is from writing to a stream. Errors about a file name it."""
    return isinstance(error, OSError) and error.filename is None and error.errno in {errno.EPIPE, *_NOT_WRITTEN}


@contextmanager
def output_may_fail() -> Iterator[None]:
    """End the command quietly if the reader of its output is gone, and with one line if the disk is full.

    Exits with 1 in both cases: some of the output is missing.
    """
    try:
        yield
    except OSError as error:
        if not output_failed(error):
            raise
        _discard_output()
        if error.errno != errno.EPIPE:
            with suppress(OSError):
                more = "".join(getattr(error, "__notes__", ()))
                click.echo(f"Error: cannot write the output: {error.strerror}{more}", err=True)
        sys.exit(1)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the command at once, also while it waits for stdin within a loop.

    asyncio replaces Python's own handler, but no other: its own only cancels the task, which does not run meanwhile.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _discard_output() -> None:
    """Send buffered output to /dev/null: the interpreter flushes it at its end, and would report the error again."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class _Commands(click.Group):
    """A group that imports a subcommand only when it is called."""

    def main(self, *args: Any, **extra: Any) -> Any:
        open_standard_streams()
        with output_may_fail(), interruptible():
            return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            # It repeats what was typed, which may be a key in the wrong place.
            from sidecar.cli.options import value_refused
            from sidecar.core.apikey import without_keys

            if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
                raise value_refused(error) from error
            raise click.UsageError(without_keys(error.format_message()), error.ctx) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS:
            near = "".join(f" Did you mean {name!r}?" for name in self._near(ctx, args[0]))
            ctx.fail(f"No such command {args[0]!r}.{near}")
        return super().resolve_command(ctx, args)

    def _near(self, ctx: click.Context, name: str) -> list[str]:
        """Return the command that was probably meant, ready to type: possibly one of a group, or an option."""
        if name in _OPTIONS:
            return [_OPTIONS[name]]
        from sidecar.cli.options import USUAL

        name = USUAL.get(name, name)
        groups = [
            (group, found) for group in _COMMANDS if isinstance(found := self.get_command(ctx, group), click.Group)
        ]
        within = {one: f"{group} {one}" for group, found in reversed(groups) for one in found.list_commands(ctx)}
        exact = [name] if name in _COMMANDS else [within[name]] if name in within else []
        return (
            exact
            or get_close_matches(name, _COMMANDS, 1)
            or [within[one] for one in get_close_matches(name, within, 1)]
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sidecar")
@click.pass_context
def main(context: click.Context) -> None:
    """API-key auth sidecar: verifies API keys in front of a service that you do not want to change.

    \b
    Example:
      sidecar demo                     try it
      sidecar check sidecar.yaml       find every mistake in a configuration
      sidecar serve -c sidecar.yaml    run it
    """
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        context.color = False
