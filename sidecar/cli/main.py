"""The command `sidecar`. Each subcommand is a module that is imported only when it is called."""

import importlib
import os
import sys
from typing import Any, Final

import click

from sidecar import __version__

_COMMANDS: Final = {
    "serve": ("sidecar.cli.serve", "serve_command"),
    "check": ("sidecar.cli.check", "check_command"),
    "schema": ("sidecar.cli.check", "schema_command"),
    "keys": ("sidecar.cli.keys", "keys_group"),
    "store": ("sidecar.cli.store", "store_group"),
    "admin": ("sidecar.cli.admin", "admin_group"),
    "audit": ("sidecar.cli.store", "audit_group"),
    "explain": ("sidecar.cli.explain", "explain_command"),
    "doctor": ("sidecar.cli.doctor", "doctor_command"),
    "demo": ("sidecar.cli.demo", "demo_command"),
}


def open_standard_streams() -> None:
    """Open /dev/null in place of those that are closed.

    The next file would get such a number: what is written to stderr would end up in the store, and libuv aborts the
    process when it closes a file of a number that low.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number, and so this one: those below it are open by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for good


class _Commands(click.Group):
    """A group that imports a subcommand only when it is called."""

    def main(self, *args: Any, **extra: Any) -> Any:
        open_standard_streams()
        return super().main(*args, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="sidecar")
def main() -> None:
    """API-key auth sidecar: verifies API keys in front of a service that you do not want to change.

    \b
    Example:
      sidecar demo                     try it
      sidecar check sidecar.yaml       find every mistake in a configuration
      sidecar serve -c sidecar.yaml    run it
    """
