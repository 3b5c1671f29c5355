"""What `sidecar keys` does once its arguments are understood."""

import getpass
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from sidecar.cli.options import Failure, Misuse, load_or_exit
from sidecar.config.build.config import Config
from sidecar.config.fields import parse_store, sqlite_path
from sidecar.core.apikey import Hasher, looks_secret, peppers_from
from sidecar.core.model import ApiKey
from sidecar.gate.compile import key_rules
from sidecar.keys.lifecycle import Issued, KeyMaker, Lifecycle, Rotated, check_peppers
from sidecar.keys.ports import Actor, KeyFilter, KeyRegistry
from sidecar.keys.transitions import Rotation
from sidecar.keys.validation import KeyRules, NewKey
from sidecar.store.store import SqliteStore

# From a store's URL to an open store.


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


T = TypeVar("T")
Verb = Callable[[Lifecycle, ApiKey], Awaitable[T]]

_PAGE = 500
_STDIN = "-"


def settings_of(config: str | None, store: str | None) -> Config:
    """The configuration, with the store of the option. Exits where it is wrong. Raises Misuse where none is named."""
    if config is None:
        raise Misuse("name the configuration: -c FILE, or SIDECAR_CONFIG")
    return load_or_exit(config, {"store": store})


def url_of(config: str | None, store: str | None) -> str:
    """The store's URL; the configuration is read only where no option names one."""
    if store is None and config is None:
        raise Misuse("name the configuration (-c FILE, or SIDECAR_CONFIG) or the store (--store URL)")
    return settings_of(config, None).store if store is None else store


def rules_of(config: Config) -> KeyRules:
    """What the configuration asks of a key. Raises Misuse where its settings do not go together."""
    try:
        return key_rules(config)
    except ValueError as error:
        raise Misuse(f"{config.path}: keys: {error}") from error


async def issue(config: Config, wanted: NewKey) -> Issued:
    """Raises InvalidKey, MissingPepper and StoreUnavailable. Nothing is made for a key that does not fit."""
    rules, hasher = rules_of(config), hasher_of_environ(config)
    rules.check(wanted, now())
    async with open_store(config.store, create=True) as store:
        await check_peppers(store.statistics, hasher)
        return await _lifecycle(store.keys, hasher).issue(wanted, rules, actor=actor())


def prepare(config: Config, wanted: NewKey) -> Issued:
    """A key that no store knows. Raises InvalidKey."""
    maker = KeyMaker(hasher_of_environ(config), clock=time.time, randbelow=secrets.randbelow)
    return maker.prepare(wanted, rules_of(config), actor=actor())


async def change(url: str, name: str, verb: Verb[T], config: Config | None = None) -> T:
    """What `verb` makes of the key named by id, stored prefix or `-`. Raises Failure, KeyConflict and StoreUnavailable.

    `config` says how keys made elsewhere are hashed.
    """
    async with open_store(url) as store:
        lifecycle = _lifecycle(store.keys, hasher_of_environ(config) if name == _STDIN else Hasher())
        return await verb(lifecycle, await _named(lifecycle, name))


async def rotate(config: Config, name: str, rotation: Rotation) -> Rotated:
    """Raises Failure, KeyConflict, InvalidKey, MissingPepper and StoreUnavailable."""
    rules, hasher = rules_of(config), hasher_of_environ(config)
    async with open_store(config.store) as store:
        await check_peppers(store.statistics, hasher)
        lifecycle = _lifecycle(store.keys, hasher)
        return await lifecycle.rotate((await _named(lifecycle, name)).id, rotation, rules, actor=actor())


async def _named(lifecycle: Lifecycle, name: str) -> ApiKey:
    if looks_secret(name):
        raise Misuse("a command line can be read by every process: give - instead of the key, and the key on stdin")
    found = await (lifecycle.find_by_secret(_from_stdin()) if name == _STDIN else lifecycle.find_by(name))
    if found is None:
        which = "like the one read from stdin" if name == _STDIN else repr(name)
        raise Failure(f"no key {which}; see sidecar keys list")
    return found


async def pages(url: str, wanted: KeyFilter) -> AsyncIterator[Sequence[ApiKey]]:
    """The keys that fit, in pages that are not empty."""
    async with open_store(url) as store:
        while page := await store.keys.list(replace(wanted, limit=_PAGE)):
            yield page
            wanted = replace(wanted, after=page[-1].id)


def now() -> int:
    """Microseconds of UTC."""
    return int(time.time() * 1_000_000)


def _lifecycle(keys: KeyRegistry, hasher: Hasher) -> Lifecycle:
    return Lifecycle(keys, hasher, clock=time.time, randbelow=secrets.randbelow)


def hasher_of_environ(config: Config | None = None) -> Hasher:
    """With the peppers of the environment and, of a configuration, keys made elsewhere. Raises Misuse."""
    try:
        return Hasher(peppers_from(os.environ), () if config is None else config.keys.imported)
    except ValueError as error:
        raise Misuse(str(error)) from error


def _from_stdin() -> str:
    """One line. Bytes that are no text make it a key that nobody has."""
    return sys.stdin.buffer.readline().decode("utf-8", "replace").rstrip("\r\n")


def actor() -> Actor:
    """Who runs this command, on which host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # In a container, a user id need not have a name.
        user = str(os.getuid())
    return Actor(name=f"cli:{user}", source=socket.gethostname())


async def enable(lifecycle: Lifecycle, key: ApiKey) -> ApiKey:
    return await lifecycle.enable(key.id, actor=actor())


async def disable(lifecycle: Lifecycle, key: ApiKey) -> ApiKey:
    return await lifecycle.disable(key.id, actor=actor())


async def revoke(lifecycle: Lifecycle, key: ApiKey) -> ApiKey:
    return await lifecycle.revoke(key.id, actor=actor())


async def keep(lifecycle: Lifecycle, key: ApiKey) -> ApiKey:
    """No change."""
    return key
