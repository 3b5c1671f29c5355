"""`sidecar store`: commands for the key store as a whole."""

import asyncio

import click

from sidecar.cli import key_service
from sidecar.cli.key_service import open_store
from sidecar.cli.options import reported, store_options


@click.group(name="store")
def store_group() -> None:
    """Manage the key store.

    \b
    Example:
      sidecar store make -c sidecar.yaml
    """


@store_group.command()
@store_options
def make(config: str | None, store: str | None) -> None:
    """Create an empty key store if there is none.

    An existing store is left as it is. `sidecar serve` never creates a store, so that a lost volume is noticed. Run
    this command before the first start of an installation whose keys are issued later.

    \b
    Example:
      sidecar store make --store sqlite:///var/lib/sidecar/keys.db
    """
    with reported():
        url = key_service.url_of(config, store)
        asyncio.run(_make(url))
    click.echo(f"The key store {url} exists.")


async def _make(url: str) -> None:
    async with open_store(url, create=True):
        pass
