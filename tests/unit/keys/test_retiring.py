"""Replaced keys that are no longer used retire before their overlap ends."""

import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from sidecar.config.document import UsageSettings
from sidecar.config.policy import KeySettings
from sidecar.core.errors import Reason
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.keys.lifecycle import Lifecycle, Rotated
from sidecar.keys.ports import AuditFilter, KeyConflict, StoreUnavailable
from sidecar.keys.transitions import Rotation, retired_unused
from sidecar.keys.validation import KeyRules
from sidecar.runtime.maintenance import Retirement, UsageKeeper
from sidecar.usage.anomalies import AnomalyDetector
from sidecar.usage.recorder import Usage
from tests.unit.gate.world import World, make_world
from tests.unit.keys.making import ANN, NOW_US, a_key, set_status, used_at
from tests.unit.keys.uses import a_head

HOUR, HOUR_US = 3_600, 3_600_000_000
UNUSED = 6 * HOUR_US
REPLACED = a_key(replaced_at=NOW_US, retires_at=NOW_US + 24 * HOUR_US)


def test_a_key_that_was_never_used_retires_when_it_was_replaced_long_enough_ago() -> None:
    assert retired_unused(REPLACED, UNUSED, NOW_US + UNUSED) == replace(REPLACED, retires_at=NOW_US + UNUSED)
    with pytest.raises(KeyConflict):
        retired_unused(REPLACED, UNUSED, NOW_US + UNUSED - 1)


def test_a_key_retires_when_it_was_used_last_long_enough_ago() -> None:
    used = replace(REPLACED, last_used_at=NOW_US + HOUR_US)
    assert retired_unused(used, UNUSED, NOW_US + HOUR_US + UNUSED).retires_at == NOW_US + HOUR_US + UNUSED
    with pytest.raises(KeyConflict):
        retired_unused(used, UNUSED, NOW_US + HOUR_US + UNUSED - 1)


def test_uses_before_a_key_was_replaced_do_not_shorten_its_time() -> None:
    used = replace(REPLACED, last_used_at=NOW_US - 30 * HOUR_US)
    with pytest.raises(KeyConflict):
        retired_unused(used, UNUSED, NOW_US)


@pytest.mark.parametrize(
    "changes",
    [
        {"replaced_at": None, "retires_at": None},
        {"replaced_at": None},
        {"retires_at": NOW_US + 2 * HOUR_US},
        {"retires_at": NOW_US + 12 * HOUR_US},
        {"expires_at": NOW_US + 12 * HOUR_US},
        {"status": KeyStatus.DISABLED},
        {"status": KeyStatus.REVOKED},
    ],
    ids=str,
)
def test_a_key_without_a_successor_or_past_its_end_is_not_changed(changes: dict[str, Any]) -> None:
    with pytest.raises(KeyConflict):
        retired_unused(replace(REPLACED, **changes), UNUSED, NOW_US + 12 * HOUR_US)


@pytest.mark.parametrize("used_at", [None, NOW_US + 12 * HOUR_US])
def test_a_clock_that_was_set_back_retires_nothing(used_at: int | None) -> None:
    with pytest.raises(KeyConflict):
        retired_unused(replace(REPLACED, last_used_at=used_at), UNUSED, NOW_US - 30 * HOUR_US)


class Overlap:
    """Keys in their overlap before a gate, and the rounds that look for unused ones."""

    def __init__(self, world: World, rules: KeyRules) -> None:
        self.world, self.store, self.clock = world, world.store, world.clock
        self.usage = Usage(clock=self.clock)
        detector = AnomalyDetector(UsageSettings().unusual, clock=self.clock, write=lambda line: None)
        store, settings = self.store, UsageSettings()
        self.keeper = UsageKeeper(
            store.usage, store.anomalies, self.usage, detector=detector, settings=settings, clock=self.clock
        )
        self.settings = KeySettings(sources=(), environments={}, retire_unused_seconds=6 * HOUR)
        self.retirement = Retirement(
            store.keys, store.statistics, self.keeper, settings=self.settings, clock=self.clock
        )
        self._lifecycle = Lifecycle(self.store.keys, world.hasher, clock=self.clock, randbelow=secrets.randbelow)
        self._rules = rules

    async def rotated(self, **changes: Any) -> tuple[str, Rotated]:
        """The plaintext of a key that was just replaced, and what became of it."""
        text, key = await self.world.issue("read", **changes)
        return text, await self._lifecycle.rotate(key.id, Rotation(), self._rules, actor=ANN)

    async def use(self, text: str) -> None:
        """A request that is allowed, and counted as the data listener does."""
        allow = await self.world.allows("GET", "/items/1", key=text)
        self.usage.used(allow, a_head(), 200, self.clock.seconds())

    async def stored(self, key: ApiKey) -> ApiKey:
        found = await self.store.keys.get(key.id)
        assert found is not None
        return found

    async def retired(self) -> list[str]:
        """Ids of the keys that were retired."""
        return [row.key_id for row in reversed(await self.store.audit.rows(AuditFilter(action="retire", limit=1_000)))]


@pytest.fixture
async def overlap(tmp_path: Path, rules: KeyRules) -> AsyncIterator[Overlap]:
    world = await make_world(tmp_path)
    yield Overlap(world, rules)
    await world.store.close()


async def test_a_retired_key_is_refused_and_its_replacement_works(overlap: Overlap) -> None:
    text, rotated = await overlap.rotated(name="CI", tenant="acme")
    await overlap.use(text)
    overlap.clock.now += 6 * HOUR
    await overlap.retirement.round()
    denied = await overlap.world.denies("GET", "/items/1", key=text)
    assert denied.reason is Reason.RETIRED_KEY
    await overlap.world.allows("GET", "/items/1", key=rotated.new.secret.text)
    now = NOW_US + 6 * HOUR_US
    assert (await overlap.stored(rotated.old)).retires_at == now
    [row] = await overlap.store.audit.rows(AuditFilter(action="retire"))
    assert (row.at, row.actor, row.source, row.key_id, row.tenant) == (
        now,
        "sidecar",
        "unused",
        rotated.old.id,
        "acme",
    )
    assert row.before is not None
    assert row.after is not None
    changed = {name: (row.before[name], row.after[name]) for name in row.after if row.before[name] != row.after[name]}
    assert changed == {"retires_at": (NOW_US + 24 * HOUR_US, now)}
    assert (await overlap.store.audit.verify()).problem is None


async def test_a_key_retires_only_once(overlap: Overlap) -> None:
    await overlap.rotated()
    overlap.clock.now += 6 * HOUR
    await overlap.retirement.round()
    overlap.clock.now += HOUR
    await overlap.retirement.round()
    assert len(await overlap.retired()) == 1


async def test_a_use_that_is_only_in_memory_keeps_a_key(overlap: Overlap) -> None:
    text, rotated = await overlap.rotated()
    overlap.clock.now += 6 * HOUR
    await overlap.use(text)
    await overlap.retirement.round()
    assert await overlap.retired() == []
    assert (await overlap.stored(rotated.old)).last_used_at == NOW_US + 6 * HOUR_US


async def test_a_use_that_is_not_written_yet_because_one_was_written_just_now_keeps_a_key(overlap: Overlap) -> None:
    """An old use is written only now if the store was unavailable in between."""
    text, _ = await overlap.rotated()
    await overlap.use(text)
    overlap.clock.now += 6 * HOUR
    await overlap.keeper.flush()
    overlap.clock.now += 10
    await overlap.use(text)
    await overlap.keeper.flush()
    await overlap.retirement.round()
    assert await overlap.retired() == []


async def test_a_use_by_another_process_keeps_a_key(overlap: Overlap) -> None:
    _, rotated = await overlap.rotated()
    overlap.clock.now += 6 * HOUR
    await overlap.store.usage.touch({rotated.old.id: used_at(NOW_US + HOUR_US)})
    await overlap.retirement.round()
    assert await overlap.retired() == []
    overlap.clock.now += HOUR
    await overlap.retirement.round()
    assert await overlap.retired() == [rotated.old.id]


async def test_only_unused_keys_among_many_retire(overlap: Overlap) -> None:
    _, early = await overlap.rotated()
    overlap.clock.now += 3 * HOUR
    _, late = await overlap.rotated()
    used, _ = await overlap.rotated()
    await overlap.world.issue("read")
    _, disabled = await overlap.rotated()
    await set_status(overlap.store.keys, disabled.old.id, KeyStatus.DISABLED)
    overlap.clock.now += 3 * HOUR
    await overlap.retirement.round()
    assert await overlap.retired() == [early.old.id]
    overlap.clock.now += 3 * HOUR - 60
    await overlap.use(used)
    overlap.clock.now += 60
    await overlap.retirement.round()
    assert await overlap.retired() == [early.old.id, late.old.id]


async def test_a_round_is_limited_and_the_next_one_continues(overlap: Overlap) -> None:
    keys = [a_key(replaced_at=NOW_US, retires_at=NOW_US + 24 * HOUR_US) for _ in range(120)]
    await overlap.store.keys.add(keys, actor=ANN)
    overlap.clock.now += 6 * HOUR
    await overlap.retirement.round()
    first = len(await overlap.retired())
    assert 0 < first < len(keys)
    await overlap.retirement.round()
    assert len(set(await overlap.retired())) == len(keys)


@pytest.mark.parametrize(
    "changes",
    [
        {"expires_at": NOW_US + HOUR_US},
        {"last_used_at": NOW_US + 5 * HOUR_US},
        {"replaced_at": NOW_US + 5 * HOUR_US},
        {"replaced_at": None},
        {"retires_at": NOW_US + HOUR_US},
        {"status": KeyStatus.DISABLED},
    ],
    ids=str,
)
async def test_many_kept_keys_do_not_delay_others(overlap: Overlap, changes: dict[str, Any]) -> None:
    ends = {"replaced_at": NOW_US, "retires_at": NOW_US + 23 * HOUR_US, **changes}
    await overlap.store.keys.add([a_key(**ends) for _ in range(120)], actor=ANN)
    _, rotated = await overlap.rotated()
    overlap.clock.now += 6 * HOUR
    await overlap.retirement.round()
    assert await overlap.retired() == [rotated.old.id]


async def test_nothing_retires_early_unless_it_is_asked_for(overlap: Overlap) -> None:
    text, _ = await overlap.rotated()
    overlap.clock.now += 12 * HOUR
    overlap.retirement.reconfigure(structs.replace(overlap.settings, retire_unused_seconds=None))
    await overlap.retirement.round()
    await overlap.world.allows("GET", "/items/1", key=text)
    overlap.retirement.reconfigure(overlap.settings)
    await overlap.retirement.round()
    assert (await overlap.world.denies("GET", "/items/1", key=text)).reason is Reason.RETIRED_KEY


async def test_the_log_names_the_retired_key_and_how_long_it_was_unused(
    overlap: Overlap, caplog: pytest.LogCaptureFixture
) -> None:
    text, rotated = await overlap.rotated(name="CI\nforged")
    overlap.clock.now += 6 * HOUR
    with caplog.at_level(logging.WARNING):
        await overlap.retirement.round()
    [line] = caplog.messages
    assert line.startswith(f"sidecar: keys: {rotated.old.id} ('CI\\nforged')")
    assert line.endswith("unused since 2027-01-15T08:00:00Z")
    assert text not in line


async def test_an_unavailable_store_ends_the_round(overlap: Overlap) -> None:
    await overlap.rotated()
    overlap.clock.now += 6 * HOUR
    await overlap.store.close()
    with pytest.raises(StoreUnavailable):
        await overlap.retirement.round()
