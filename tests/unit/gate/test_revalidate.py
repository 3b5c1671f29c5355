"""Running exchanges are judged again: by the current key, and the rules that allowed them."""

from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.errors import Reason
from sidecar.core.model import ApiKey, KeyStatus, RequestHead
from tests.unit.gate.world import World
from tests.unit.keys.making import ANN, NOW_US, set_status


async def changed(world: World, key: ApiKey, **changes: Any) -> ApiKey:
    """The key as the gate finds it, after a change in the store."""
    await world.store.keys.change(key.id, lambda key: replace(key, **changes), action="change", at=NOW_US, actor=ANN)
    found = await world.gate.revalidate(key)
    assert isinstance(found, ApiKey)
    return found


@pytest.mark.requirement("R1.6")
@pytest.mark.parametrize(
    ("method", "target", "granted", "changes", "reason"),
    [
        ("GET", "/items/1", {}, {"scopes": ()}, Reason.INSUFFICIENT_SCOPE),
        ("POST", "/items/1", {}, {"scopes": ("read",)}, Reason.INSUFFICIENT_SCOPE),
        ("GET", "/items/1", {}, {"scopes": ("read",)}, None),
        ("GET", "/items/%31", {}, {"scopes": ()}, Reason.INSUFFICIENT_SCOPE),
        ("GET", "/o/acme/e/live/x", {"tenant": "acme"}, {"tenant": "globex"}, Reason.WRONG_TENANT),
        ("GET", "/o/acme/e/live/x", {"tenant": "acme"}, {"environment": "test"}, Reason.WRONG_ENVIRONMENT),
        ("GET", "/live/x", {}, {"environment": "test"}, Reason.WRONG_ENVIRONMENT),
        ("GET", "/public/x", {}, {"scopes": (), "tenant": "globex"}, None),
        ("GET", "/counted/x", {}, {"quotas": {"general": 0}}, None),
    ],
)
async def test_a_key_that_was_changed_is_judged_as_a_new_request_would_be(
    world: World, method: str, target: str, granted: dict[str, Any], changes: dict[str, Any], reason: Reason | None
) -> None:
    text, key = await world.issue("write", **granted)
    head = RequestHead(
        method=method,
        target=target,
        headers=((b"Host", b"api.test"), (b"Authorization", f"Bearer {text}".encode())),
        peer="198.51.100.7",
    )
    allow = await world.allows(method, target, key=text)
    assert world.gate.reauthorize(head, allow, key) is None
    now = await changed(world, key, **changes)
    assert world.gate.reauthorize(head, allow, now) is reason
    if reason is not None:
        assert (await world.denies(method, target, key=text)).reason is reason


@pytest.mark.requirement("R1.6")
async def test_a_key_that_is_gone_or_no_longer_valid_says_why(world: World) -> None:
    _, key = await world.issue("read")
    assert await world.gate.revalidate(key) == key
    await set_status(world.store.keys, key.id, KeyStatus.DISABLED)
    assert await world.gate.revalidate(key) is Reason.DISABLED_KEY
    assert await world.gate.revalidate(replace(key, digest=b"another")) is Reason.INVALID_KEY
