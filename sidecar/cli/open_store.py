"""From a store's URL to an open store."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sidecar.cli.errors import Misuse
from sidecar.config.fields import parse_store, sqlite_path
from sidecar.store.sqlite import SqliteStore


def path_of(url: str) -> str:
    """The file of `sqlite:///absolute/path` or `sqlite:relative/path`. Raises Misuse for anything else."""
    try:
        return sqlite_path(parse_store(url))
    except ValueError as error:
        raise Misuse(f"--store: {error}") from error


@asynccontextmanager
async def open_store(url: str, *, create: bool = False) -> AsyncIterator[SqliteStore]:
    """Raises StoreUnavailable, also where there is no store yet and `create` is not set."""
    store = await SqliteStore.open(path_of(url), create=create, clock=time.time, timings=_unobserved)
    try:
        yield store
    finally:
        await store.close()


def _unobserved(operation: str, seconds: float) -> None:
    """A command has no metrics."""
