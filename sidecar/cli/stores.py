"""From a store's URL to an open store."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sidecar.cli.failures import Misuse
from sidecar.keys.sqlite import SqliteStore

_SCHEME = "sqlite:"


def path_of(url: str) -> str:
    """The file of `sqlite:///absolute/path` or `sqlite:relative/path`. Raises Misuse for anything else."""
    path = url.removeprefix(_SCHEME)
    path = path.removeprefix("//")
    if not url.startswith(_SCHEME) or not path or (path != url.removeprefix(_SCHEME) and not path.startswith("/")):
        raise Misuse(f"the store {url!r} must be sqlite:///absolute/path or sqlite:relative/path")
    return path


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
