"""`sidecar serve`."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import click

from sidecar.app import App, StartError
from sidecar.cli.configs import config_option, load_or_exit
from sidecar.config.model import Config


@click.command("serve")
@config_option
@click.option("--listen", metavar="ADDRESS", help="Data listener: host:port or unix:/path.")
@click.option("--ops", metavar="ADDRESS", help="Ops listener: /livez /readyz /metrics.")
@click.option("--admin", metavar="ADDRESS", help="Admin listener.")
@click.option("--upstream", metavar="URL", help="The protected service: http://…, https://… or unix:/path.")
@click.option("--store", metavar="URL", help="Key store: sqlite:///absolute/path.db.")
@click.option("--limiter", metavar="URL", help="Where quotas are counted: memory.")
def serve_command(config_path: str, **options: str | None) -> None:
    """Run the sidecar until SIGTERM or SIGINT.

    \b
    Example:
      sidecar serve -c sidecar.yaml --listen 127.0.0.1:8080 --upstream http://127.0.0.1:8000

    Options win over SIDECAR_* variables (SIDECAR_LISTEN, SIDECAR_STORE, …), and these over the file. Exits with 2 if
    the configuration is wrong, and with 1 if it cannot be carried out: port taken, store unreadable, pepper missing.
    """
    run(_serve(load_or_exit(config_path, options)))


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` on uvloop where there is one; a StartError is one line on stderr and exit 1."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(main)
    except StartError as error:
        click.echo(f"sidecar: {error}", err=True)
        sys.exit(1)


async def _serve(config: Config) -> None:
    stopping = stop_event()
    async with App(config) as app:
        for name, address in app.listeners:
            click.echo(f"sidecar: {name} listener on {address}", err=True)
        await stopping.wait()


def stop_event() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    return stopping


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
