"""What `sidecar keys` does once its arguments are understood."""

import getpass
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from sidecar.cli.configs import load_or_exit
from sidecar.cli.failures import Failure, Misuse
from sidecar.cli.stores import open_store
from sidecar.config.model import Config
from sidecar.core.apikey import Hasher, KeyFormat, looks_secret, peppers_from
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.lifecycle import Issued, Lifecycle, check_peppers
from sidecar.keys.records import standing
from sidecar.keys.rules import KeyRules, NewKey
from sidecar.keys.store import KeyFilter, KeyStore

Verb = Callable[[Lifecycle, ApiKey], Awaitable[ApiKey]]

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
        return KeyRules(
            format=KeyFormat(length=config.keys.length, checksum_length=config.keys.checksum_length),
            environments=config.keys.environments,
            prefix_length=config.keys.prefix_length,
            default_scopes=config.keys.default_scopes,
            catalogue=config.catalogue,
            plans=config.plans,
            quotas=config.quotas,
        )
    except ValueError as error:
        raise Misuse(f"{config.path}: keys: {error}") from error


async def issue(config: Config, wanted: NewKey) -> Issued:
    """Raises UnfitKey, MissingPepper and StoreUnavailable. Nothing is made for a key that does not fit."""
    rules, hasher = rules_of(config), hasher_of_environ()
    rules.check(wanted, now())
    async with open_store(config.store, create=True) as store:
        await check_peppers(store, hasher)
        return await _lifecycle(store, hasher).issue(wanted, rules, actor=_actor())


async def change(url: str, name: str, verb: Verb) -> ApiKey:
    """The key named by id, stored prefix or `-`, after `verb`. Raises Failure, KeyConflict and StoreUnavailable."""
    if looks_secret(name):
        raise Misuse("a command line can be read by every process: give - instead of the key, and the key on stdin")
    async with open_store(url) as store:
        if name == _STDIN:
            lifecycle = _lifecycle(store, hasher_of_environ())
            found = await lifecycle.find_by_secret(_from_stdin())
        else:
            lifecycle = _lifecycle(store, Hasher())
            found = await lifecycle.find_by(name)
        if found is None:
            which = "like the one read from stdin" if name == _STDIN else repr(name)
            raise Failure(f"no key {which}; see sidecar keys list")
        return await verb(lifecycle, found)


async def pages(url: str, filters: Mapping[str, str | None], at: int) -> AsyncIterator[list[ApiKey]]:
    """The keys that fit, in pages that are not empty. Keys that are expired or retired are stored as active."""
    tenant, environment, status = filters["tenant"], filters["environment"], filters["status"]
    stored = KeyStatus.ACTIVE if status in ("expired", "retired") else KeyStatus(status) if status else None
    after: str | None = ""
    async with open_store(url) as store:
        while after is not None:
            page = await store.list(
                KeyFilter(tenant=tenant, environment=environment, status=stored, after=after, limit=_PAGE)
            )
            after = page[-1].id if page else None
            if fitting := [key for key in page if status in (None, standing(key, at))]:
                yield fitting


def now() -> int:
    """Microseconds of UTC."""
    return int(time.time() * 1_000_000)


def _lifecycle(store: KeyStore, hasher: Hasher) -> Lifecycle:
    return Lifecycle(store, hasher, clock=time.time, randbelow=secrets.randbelow)


def hasher_of_environ() -> Hasher:
    try:
        return Hasher(peppers_from(os.environ))
    except ValueError as error:
        raise Misuse(str(error)) from error


def _from_stdin() -> str:
    """One line. Bytes that are no text make it a key that nobody has."""
    return sys.stdin.buffer.readline().decode("utf-8", "replace").rstrip("\r\n")


def _actor() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        # In a container, a user id need not have a name.
        return f"cli:{os.getuid()}"


async def enable(lifecycle: Lifecycle, key: ApiKey) -> ApiKey:
    return await lifecycle.enable(key.id, actor=_actor())


async def disable(lifecycle: Lifecycle, key: ApiKey) -> ApiKey:
    return await lifecycle.disable(key.id, actor=_actor())


async def revoke(lifecycle: Lifecycle, key: ApiKey) -> ApiKey:
    return await lifecycle.revoke(key.id, actor=_actor())


async def keep(lifecycle: Lifecycle, key: ApiKey) -> ApiKey:
    """No change."""
    return key
