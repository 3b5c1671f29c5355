"""Keys made elsewhere are looked up without our checksum; everything else stays as strict as it was."""

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest

from sidecar.core.apikey import ForeignKeys
from sidecar.core.errors import Reason
from sidecar.keys.ports import Actor
from tests.unit.gate.world import CONFIG, World, make_world
from tests.unit.keys.making import a_key

NAMED = CONFIG.replace("  failures:", "  imported: [{prefix: sk_live_}]\n  failures:")
ANY = CONFIG.replace("  failures:", '  imported: [{prefix: ""}]\n  failures:').replace(
    "pass_through: [{header: Authorization, scheme: Bearer}, {cookie: session}]",
    "pass_through: [{header: Authorization, scheme: Basic}]",
)
NO_SESSIONS = NAMED.replace("  pass_through", "  # ").replace("{pass_through: only}", "{}")


@pytest.fixture(params=[NAMED, ANY], ids=["a prefix", "any text"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made = await make_world(tmp_path, request.param)
    yield made
    await made.store.close()


async def stored(world: World, text: str) -> None:
    key = a_key(digest=sha256(text.encode()).digest(), scopes=("read",))
    await world.store.keys.add([key], actor=Actor(name="tests"))


async def test_a_key_made_elsewhere_is_accepted(world: World) -> None:
    await stored(world, "sk_live_x.y/z+1")
    allow = await world.allows("GET", "/items/1", key="sk_live_x.y/z+1")
    assert allow.principal is not None


async def test_an_unknown_one_is_a_wrong_key_and_counts_as_one(world: World) -> None:
    for _ in range(3):
        assert (await world.denies("GET", "/items/1", key="sk_live_nobody")).reason is Reason.INVALID_KEY
    assert (await world.denies("GET", "/items/1", key="sk_live_nobody")).reason is Reason.TOO_MANY_FAILURES


async def test_a_key_with_our_prefix_must_have_our_form(world: World) -> None:
    await stored(world, "hv_live_no_checksum")
    assert (await world.denies("GET", "/items/1", key="hv_live_no_checksum")).reason is Reason.INVALID_KEY


async def test_our_own_keys_keep_working(world: World) -> None:
    text, key = await world.issue("read")
    allow = await world.allows("GET", "/items/1", key=text)
    assert allow.principal is not None
    assert allow.principal.key.id == key.id


async def test_a_text_without_a_prefix_is_a_key_only_where_any_text_is(tmp_path: Path) -> None:
    for number, (config, taken) in enumerate([(ANY, True), (NO_SESSIONS, False)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = await make_world(folder, config)
        await stored(world, "legacy")
        decision = await world.decide("GET", "/items/1", key="legacy")
        assert (type(decision).__name__ == "Allow") is taken
        await world.store.close()


async def test_with_any_text_an_empty_credential_stays_malformed_and_others_pass(tmp_path: Path) -> None:
    world = await make_world(tmp_path, ANY)
    assert (await world.denies("GET", "/items/1", Authorization="Bearer ")).reason is Reason.MALFORMED_CREDENTIAL
    assert (await world.allows("GET", "/items/1", Authorization="Basic eDp5")).principal is None
    assert await world.allows("GET", "/public/a?page=2&q=%41")
    await world.store.close()


def test_the_digest_of_our_own_scheme_is_not_doubled() -> None:
    assert ForeignKeys(prefix="").algorithm == "sha256"


LIKE_OURS = CONFIG.replace("  failures:", "  imported: [{prefix: hv_live_}, {prefix: hv_test_old_}]\n  failures:")


async def test_a_key_made_elsewhere_may_have_our_prefix_if_it_is_listed(tmp_path: Path) -> None:
    world = await make_world(tmp_path, LIKE_OURS)
    try:
        ours, _ = await world.issue("read")
        for text in ("hv_live_" + "aB-_" * 11, "hv_test_old_1"):
            await stored(world, text)
            for _ in range(2):
                await world.allows("GET", "/items/1", key=text)
        await stored(world, "hv_test_1")
        await world.allows("GET", "/items/1", key=ours)
        for wrong in ("hv_test_1", ours[:-1], "hv_live_" + "aB-_" * 10):
            assert (await world.denies("GET", "/items/1", key=wrong)).reason is Reason.INVALID_KEY
        assert (await world.denies("GET", "/items/1", key="hv_live_nope")).reason is Reason.TOO_MANY_FAILURES
    finally:
        await world.store.close()


@pytest.mark.parametrize(
    ("text", "looked_up"),
    [("hv_live_", True), ("hv_live_x", True), ("hv_test_old_1", True), ("hv_test_1", False), ("sk_1", False)],
)
async def test_only_credentials_with_a_listed_prefix_are_looked_up(tmp_path: Path, text: str, looked_up: bool) -> None:
    world = await make_world(tmp_path, LIKE_OURS)
    try:
        assert world.gate.forms.may_be_stored(text) is looked_up
    finally:
        await world.store.close()
