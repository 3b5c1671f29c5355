"""The work of `sidecar keys`: open the store, find the key, and call the lifecycle."""

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

from sidecar.cli.options import Failure, Misuse, config_here, config_or_exit, load_or_exit, shortened
from sidecar.config.build.config import Config
from sidecar.config.load import Environment
from sidecar.config.store_url import file_path, is_file, parse_store
from sidecar.core.apikey import Hasher, pasted, peppers_from
from sidecar.core.model import ApiKey
from sidecar.gate.compile import key_rules
from sidecar.keys.lifecycle import Issued, KeyMaker, Lifecycle, Rotated, check_peppers
from sidecar.keys.ports import Actor, KeyFilter, KeyRegistry, ReadOnlyStore
from sidecar.keys.transitions import Rotation
from sidecar.keys.validation import KeyRules, NewKey
from sidecar.runtime.tasks import SystemClock
from sidecar.store.store import Store
from sidecar.store.store import open_store as store_at

T = TypeVar("T")
Verb = Callable[[Lifecycle, ApiKey], Awaitable[T]]

_PAGE = 500
_STDIN = "-"


def parsed_url(url: str) -> str:
    """Return the URL in the configuration's form. Raises Misuse if it does not name a store."""
    try:
        return parse_store(url)
    except ValueError as error:
        raise Misuse(f"--store: {error}") from error


class FileUrl(str):
    """The URL of a store in a file, with the configuration whose rules apply to its records."""

    __slots__ = ("config",)

    config: Config

    def __new__(cls, config: Config) -> "FileUrl":
        url = super().__new__(cls, config.store)
        url.config = config
        return url


def url_to_read(config: Config) -> str:
    """Return the URL of the configuration's store, to read from."""
    return FileUrl(config) if is_file(config.store) else config.store


@asynccontextmanager
async def open_store(url: str, *, create: bool = False) -> AsyncIterator[Store]:
    """Open the store. Raises StoreUnavailable, also if there is no store yet and `create` is not set.

    Raises ReadOnlyStore for the plain URL of a file, which only commands that change something use.
    """
    if is_file(url):
        store = await _open_file(url, create=create)
    else:
        store = await store_at(parsed_url(url), create=create, clock=SystemClock(), timings=_unobserved)
    try:
        yield store
    finally:
        await store.close()


async def _open_file(url: str, *, create: bool) -> Store:
    # Imported here, because only users of a store need its libraries.
    from sidecar.runtime.key_file import open_key_file
    from sidecar.store.file import InvalidKeyFile

    if create or not isinstance(url, FileUrl):
        raise ReadOnlyStore(file_path(parsed_url(url)))
    try:
        hasher = hasher_of_environ(url.config)
        return await open_key_file(url.config, hasher, clock=SystemClock(), timings=_unobserved)
    except InvalidKeyFile as error:
        raise Failure(*error.problems) from error


def _unobserved(operation: str, seconds: float) -> None:
    """A command has no metrics."""


def settings_of(config: str | None, store: str | None) -> Config:
    """Load the configuration; `store` overrides its own. Exits if it is wrong. Raises Misuse if none is named."""
    return load_or_exit(config_or_exit(config), {"store": store})


def url_of(config: str | None, store: str | None) -> str:
    """Return the store's URL, to read from.

    The configuration is read only if no option names the store, or if it is a file, whose records need the rules.
    """
    if store is None and config_here(config) is None:
        raise Misuse("no store is named: give -c FILE (or set SIDECAR_CONFIG), or give --store URL")
    return url_to_read(settings_of(config, store)) if store is None or is_file(store) else parsed_url(store)


def rules_of(config: Config) -> KeyRules:
    """Return what the configuration requires of a key. Raises Misuse if its settings contradict each other."""
    try:
        return key_rules(config)
    except ValueError as error:
        raise Misuse(f"{config.path}: keys: {error}") from error


async def issue(config: Config, wanted: NewKey) -> Issued:
    """Issue a key. An invalid key creates no store. Raises InvalidKey, MissingPepper and StoreUnavailable."""
    rules, hasher = rules_of(config), hasher_of_environ(config)
    rules.check_new(wanted, now())
    async with open_store(config.store, create=True) as store:
        await check_peppers(store.statistics, hasher)
        return await lifecycle_of(store.keys, hasher).issue(wanted, rules, actor=actor())


def prepare(config: Config, wanted: NewKey) -> Issued:
    """Issue a key without storing it. Raises InvalidKey."""
    maker = KeyMaker(hasher_of_environ(config), clock=SystemClock(), randbelow=secrets.randbelow)
    return maker.prepare(wanted, rules_of(config), actor=actor())


async def change(url: str, name: str, verb: Verb[T], config: Config | None = None) -> T:
    """Apply `verb` to the key that `name` identifies: by id, by prefix, or `-` for the API key on stdin.

    `config` says how imported keys are hashed. Raises Failure, Misuse, KeyConflict and StoreUnavailable.
    """
    async with open_store(url) as store:
        lifecycle = lifecycle_of(store.keys, hasher_of_environ(config) if name == _STDIN else Hasher())
        return await verb(lifecycle, await _find(lifecycle, name))


async def rotate(config: Config, name: str, rotation: Rotation) -> Rotated:
    """Issue a replacement. Raises Failure, Misuse, KeyConflict, InvalidKey, MissingPepper and StoreUnavailable."""
    rules, hasher = rules_of(config), hasher_of_environ(config)
    async with open_store(config.store) as store:
        await check_peppers(store.statistics, hasher)
        lifecycle = lifecycle_of(store.keys, hasher)
        return await lifecycle.rotate((await _find(lifecycle, name)).id, rotation, rules, actor=actor())


async def _find(lifecycle: Lifecycle, name: str) -> ApiKey:
    text = line_of_stdin() if name == _STDIN else ""
    found = await (_find_by_secret(lifecycle, text) if name == _STDIN else lifecycle.find_by(name))
    if found is not None:
        return found
    if name == _STDIN and not text.strip():
        raise Failure("stdin is empty: send the key there, or name its id; see sidecar keys list")
    which = "key matches the one on stdin" if name == _STDIN else f"key {shortened(name)}"
    raise Failure(f"no {which}; see sidecar keys list")


async def _find_by_secret(lifecycle: Lifecycle, text: str) -> ApiKey | None:
    """Find a key by its plaintext, as it is or without text that was copied along with it."""
    found = await lifecycle.find_by_secret(text)
    return found if found is not None or pasted(text) == text else await lifecycle.find_by_secret(pasted(text))


async def pages(store: Store, wanted: KeyFilter) -> AsyncIterator[Sequence[ApiKey]]:
    """Yield the keys that match the filter, in pages that are never empty.

    The caller must close the store: a generator that is left early could not wait for that.
    """
    while page := await store.keys.list(replace(wanted, limit=_PAGE)):
        yield page
        wanted = replace(wanted, after=page[-1].id)


def now() -> int:
    """Return the current time, in microseconds of UTC."""
    return int(time.time() * 1_000_000)


def lifecycle_of(keys: KeyRegistry, hasher: Hasher) -> Lifecycle:
    return Lifecycle(keys, hasher, clock=SystemClock(), randbelow=secrets.randbelow)


def hasher_of_environ(config: Config | None = None) -> Hasher:
    """Return a hasher with the environment's peppers and the hashes of `keys.imported`. Raises Misuse."""
    try:
        return Hasher(peppers_from(Environment(os.environ)), () if config is None else config.keys.imported)
    except ValueError as error:
        raise Misuse(str(error)) from error


def line_of_stdin() -> str:
    """Read one line. Invalid UTF-8 is replaced, so that such a key matches none."""
    return sys.stdin.buffer.readline().decode("utf-8", "replace").rstrip("\r\n")


def actor() -> Actor:
    """Return who runs this command, and on which host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # In a container, a user id may have no name.
        user = str(os.getuid())
    return Actor(name=f"cli:{user}", source=socket.gethostname())


async def enable(lifecycle: Lifecycle, key: ApiKey) -> ApiKey:
    return await lifecycle.enable(key.id, actor=actor())


async def disable(lifecycle: Lifecycle, key: ApiKey) -> ApiKey:
    return await lifecycle.disable(key.id, actor=actor())


async def revoke(lifecycle: Lifecycle, key: ApiKey) -> ApiKey:
    return await lifecycle.revoke(key.id, actor=actor())


async def keep(lifecycle: Lifecycle, key: ApiKey) -> ApiKey:
    """Return the key unchanged."""
    return key
