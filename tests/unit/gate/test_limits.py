"""Gate.decide: quotas, wrong keys, and an unavailable store."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.apikey import KeyFormat
from sidecar.core.errors import Reason
from sidecar.core.model import Allow, KeyStatus
from tests.unit.gate.world import CONFIG, World, make_world
from tests.unit.keys.making import set_status


def unknown(text: str) -> str:
    return text[:-1] + ("a" if text[-1] != "a" else "b")


def strangers() -> Iterator[str]:
    """Well-formed keys that were never issued."""
    chance = random.Random("strangers")  # noqa: S311 - nothing is protected by it
    while True:
        yield KeyFormat().make("hv_live_", chance.randrange)


async def reasons_of(world: World, keys: Iterator[str], count: int, **more: Any) -> Counter[Reason]:
    return Counter([(await world.denies("GET", "/items/1", key=next(keys), **more)).reason for _ in range(count)])


async def test_a_route_takes_what_it_costs_from_every_quota_or_nothing(world: World) -> None:
    text, _ = await world.issue()
    for left in ((2, 6), (1, 2)):
        allow = await world.allows("GET", "/counted/x", key=text)
        assert tuple(state.remaining for state in allow.quota_states) == left
    denied = await world.denies("GET", "/counted/x", key=text)
    assert denied.reason is Reason.QUOTA_EXCEEDED
    assert denied.refused_quota is not None
    assert denied.refused_quota.quota.name == "video"
    assert tuple(state.remaining for state in denied.quota_states) == (1, 2)
    response = dict(world.responses.denied(denied, world.clock.seconds()).headers)
    assert int(response[b"Retry-After"]) >= 1
    assert response[b"X-RateLimit-Remaining"] == b"1"


async def test_a_new_window_gives_the_whole_allowance_back(world: World) -> None:
    text, _ = await world.issue()
    for _ in range(2):
        await world.allows("GET", "/counted/x", key=text)
    await world.denies("GET", "/counted/x", key=text)
    world.clock.now += 3600
    await world.allows("GET", "/counted/x", key=text)


async def test_keys_do_not_share_an_allowance_and_plans_widen_it(world: World) -> None:
    one, _ = await world.issue()
    other, _ = await world.issue(plan="pro", quotas={"video": 1000})
    for _ in range(2):
        await world.allows("GET", "/counted/x", key=one)
    for _ in range(20):
        await world.allows("GET", "/counted/x", key=other)


async def test_a_refused_request_takes_nothing_but_reports_what_is_left(world: World) -> None:
    text, _ = await world.issue()
    for _ in range(5):
        denied = await world.denies("GET", "/counted/../items/1", key=text)
        assert denied.reason is Reason.AMBIGUOUS_TARGET
        assert [state.remaining for state in denied.quota_states] == [3, 10]
    await world.allows("GET", "/counted/x", key=text)


async def test_unknown_clients_are_counted_by_address_and_keys_are_not(world: World) -> None:
    text, _ = await world.issue()
    for _ in range(2):
        await world.allows("GET", "/public/x", peer="2001:db8::1")
    assert (await world.denies("GET", "/public/x", peer="2001:db8::2")).reason is Reason.QUOTA_EXCEEDED
    await world.allows("GET", "/public/x", peer="2001:db8:0:1::2")
    await world.allows("GET", "/public/x", peer="2001:db8::1", key=text)


async def test_wrong_keys_from_one_address_are_refused_over_their_limit(world: World) -> None:
    text, _ = await world.issue("read")
    reasons = [(await world.denies("GET", "/items/1", key=unknown(text))).reason for _ in range(4)]
    assert reasons == [Reason.INVALID_KEY] * 3 + [Reason.TOO_MANY_FAILURES]
    await world.allows("GET", "/items/1", key=text)
    assert (await world.denies("GET", "/items/1", key=unknown(text), peer="203.0.113.9")).reason is Reason.INVALID_KEY
    world.clock.now += 60
    assert (await world.denies("GET", "/items/1", key=unknown(text))).reason is Reason.INVALID_KEY


@pytest.mark.requirement("S4.5", "S7.7")
async def test_an_address_without_failures_left_has_a_bounded_rate_of_lookups(world: World) -> None:
    keys, (good, _), (other, _) = strangers(), await world.issue("read"), await world.issue("read")
    assert await reasons_of(world, keys, 3 + 300) == {Reason.INVALID_KEY: 3, Reason.TOO_MANY_FAILURES: 300}
    denied = await world.denies("GET", "/items/1", key=good)
    assert denied.reason is Reason.TOO_MANY_FAILURES
    assert b"Retry-After" in dict(world.responses.denied(denied, world.clock.seconds()).headers)
    await world.allows("GET", "/items/1", key=other, peer="203.0.113.9")
    world.clock.now += 0.1
    await world.allows("GET", "/items/1", key=good)


async def test_one_address_without_failures_left_does_not_use_up_the_lookups_of_another(world: World) -> None:
    keys, (good, _) = strangers(), await world.issue("read")
    await reasons_of(world, keys, 3, peer="203.0.113.9")
    await reasons_of(world, keys, 1500)
    await world.allows("GET", "/items/1", key=good, peer="203.0.113.9")


async def test_all_addresses_without_failures_left_share_a_bounded_rate_of_lookups(world: World) -> None:
    keys, (good, _), (other, _) = strangers(), await world.issue("read"), await world.issue("read")
    for number in range(4):
        await reasons_of(world, keys, 3 + 300, peer=f"203.0.113.{number}")
    await reasons_of(world, keys, 3)
    assert (await world.denies("GET", "/items/1", key=good)).reason is Reason.TOO_MANY_FAILURES
    await world.allows("GET", "/items/1", key=other, peer="192.0.2.1")


async def test_a_key_that_was_valid_before_the_store_changed_is_looked_up_for_any_address(world: World) -> None:
    good, _ = await world.issue("read")
    await world.allows("GET", "/items/1", key=good)
    await reasons_of(world, strangers(), 400)
    await world.issue("read")
    await world.allows("GET", "/items/1", key=good)


async def test_addresses_without_failures_left_have_few_lookups_under_way(world: World) -> None:
    keys = strangers()
    await reasons_of(world, keys, 3)
    late, _ = await world.issue("read")
    other, _ = await world.issue("read")
    asked = [world.decide("GET", "/items/1", key=next(keys)) for _ in range(64)]
    asked += [world.decide("GET", "/items/1", key=late), world.decide("GET", "/items/1", key=other, peer="192.0.2.1")]
    answers = await asyncio.gather(*asked)
    assert [isinstance(answer, Allow) for answer in answers[-2:]] == [False, True]
    await world.allows("GET", "/items/1", key=late)


async def test_if_failures_are_off_every_lookup_is_made(tmp_path: Path) -> None:
    world = await make_world(tmp_path, CONFIG.replace("{limit: 3, per: minute}", "off"))
    try:
        assert await reasons_of(world, strangers(), 20) == {Reason.INVALID_KEY: 20}
        await world.allows("GET", "/items/1", key=(await world.issue("read"))[0])
    finally:
        await world.store.close()


async def test_a_valid_key_without_permission_does_not_count_as_a_failure(world: World) -> None:
    text, _ = await world.issue()
    for _ in range(10):
        assert (await world.denies("GET", "/items/1", key=text)).reason is Reason.INSUFFICIENT_SCOPE


async def test_an_unavailable_store_is_503_and_never_401_or_200(tmp_path: Path) -> None:
    world = await make_world(tmp_path)
    text, _ = await world.issue("read")
    await world.store.close()
    for target in ("/items/1", "/public/x"):
        denied = await world.denies("GET", target, key=text)
        assert denied.reason is Reason.STORE_UNAVAILABLE
        assert dict(world.responses.denied(denied, world.clock.seconds()).headers)[b"Retry-After"] == b"1"
    await world.allows("GET", "/public/x")


@pytest.mark.parametrize("told", [True, False])
async def test_limits_of_a_refused_key_are_reported_if_configured(tmp_path: Path, told: bool) -> None:
    world = await make_world(tmp_path, CONFIG + ("rate_limit_headers: {on_refused_keys: true}\n" if told else ""))
    try:
        (text, key), (late, _) = await world.issue(), await world.issue(expires_at=1)
        await world.allows("GET", "/counted/x", key=text)
        await set_status(world.store.keys, key.id, KeyStatus.DISABLED)
        denied = await world.denies("GET", "/counted/x", key=text)
        assert [(state.quota.name, state.remaining) for state in denied.quota_states] == (
            [("general", 2), ("video", 6)] if told else []
        )
        assert denied.principal is None
        assert bool((await world.denies("GET", "/counted/x", key=late)).quota_states) is told
        await set_status(world.store.keys, key.id, KeyStatus.REVOKED)
        assert (await world.denies("GET", "/counted/x", key=text)).quota_states == ()
        assert (await world.denies("GET", "/counted/x", key=text)).reason is Reason.TOO_MANY_FAILURES
    finally:
        await world.store.close()
