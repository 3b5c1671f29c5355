"""Building blocks for tests of stored keys."""

import itertools
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.ports import Actor, KeyRegistry
from sidecar.keys.transitions import with_status
from sidecar.store.sqlite.connection import prepare
from sidecar.store.store import SqliteStore
from sidecar.usage.recorder import LastUse
from tests.harness.clock import Clock as ClockByHand

NOW = 1_800_000_000
"""Unix seconds at which a test begins."""
NOW_US = NOW * 1_000_000

ANN, BOB = Actor(name="ann", source="192.0.2.1"), Actor(name="bob")

_SERIAL = itertools.count(1)


class Clock(ClockByHand):
    """Begins at NOW."""

    def __init__(self) -> None:
        super().__init__(float(NOW))


class Timings(list[str]):
    """Which operations were timed."""

    def __call__(self, operation: str, seconds: float) -> None:
        assert seconds >= 0
        self.append(operation)


def ignore(operation: str, seconds: float) -> None:
    """For stores whose timings are ignored."""


async def open_store(path: str, *, create: bool = True, clock: Any = None, timings: Any = ignore) -> SqliteStore:
    return await SqliteStore.open(path, create=create, clock=clock or Clock(), timings=timings)


async def new_store(path: str, *, clock: Any = None, timings: Any = ignore) -> SqliteStore:
    """An empty one at `path`: a copy, because migrations cost most of what a short test does."""
    Path(path).touch(0o600)
    Path(path).write_bytes(_empty_store())
    return await open_store(path, create=False, clock=clock, timings=timings)


@cache
def _empty_store() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "keys.db")
        prepare(str(path), create=True)
        return path.read_bytes()


def digest_of(text: str) -> bytes:
    return sha256(text.encode()).digest()


def a_key(text: str = "", **changes: Any) -> ApiKey:
    """A key stored under the plain digest of `text`, in order of making; `changes` are its other fields."""
    serial = next(_SERIAL)
    key = ApiKey(
        id=f"key_{serial:020}",
        name=f"Key {serial}",
        prefix=f"hv_live_{serial:04}",
        digest=digest_of(text or f"secret {serial}"),
        algorithm="sha256",
        environment="live",
        created_at=NOW_US,
        created_by="tests",
    )
    return replace(key, **changes)


async def set_status(
    keys: KeyRegistry, key_id: str, status: KeyStatus, *, at: int = NOW_US, actor: Actor = ANN
) -> ApiKey:
    """As Lifecycle does it."""
    action = {KeyStatus.ACTIVE: "enable", KeyStatus.DISABLED: "disable", KeyStatus.REVOKED: "revoke"}[status]
    return await keys.change(key_id, lambda key: with_status(key, status, at), action=action, at=at, actor=actor)


def used_at(at: int) -> LastUse:
    """A use of which only the time is known."""
    return LastUse(at=at, address="", agent="")
