"""`sidecar store`: what is done to the key store as a whole."""

import asyncio

import click

from sidecar.cli import key_service as key_tasks
from sidecar.cli.key_service import open_store
from sidecar.cli.options import reported, store_options


@click.group(name="store")
def store_group() -> None:
    """Make the key store.

    \b
    Example:
      sidecar store make -c sidecar.yaml
    """


@store_group.command()
@store_options
def make(config: str | None, store: str | None) -> None:
    """Make an empty key store where there is none.

    One that is there stays as it is. `sidecar serve` never makes one, so that a lost volume is noticed. This is for the
    first start of an installation whose keys come later.

    \b
    Example:
      sidecar store make --store sqlite:///var/lib/sidecar/keys.db
    """
    with reported():
        url = key_tasks.url_of(config, store)
        asyncio.run(_make(url))
    click.echo(f"There is a key store at {url}.")


async def _make(url: str) -> None:
    async with open_store(url, create=True):
        pass
