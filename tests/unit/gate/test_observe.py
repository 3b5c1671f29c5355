"""Gate.decide with `mode: observe`:

which refusals are only reported, the request's identity, what is always enforced.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.apikey import KeyFormat
from sidecar.core.errors import Fault, Reason
from sidecar.core.model import Allow, Bucket, KeyStatus, RequestHead, Taken
from sidecar.gate.gate import Gate
from sidecar.gate.requests import KnownCredential, Understood
from sidecar.keys.cache import KeyCache
from sidecar.limiter.memory import MemoryLimiter
from tests.harness.targets import CLIMBS
from tests.unit.gate.test_limits import strangers, unknown
from tests.unit.gate.test_revalidate import changed
from tests.unit.gate.world import CONFIG, World, make_world
from tests.unit.keys.making import ANN, NOW_US, set_status

WITH_HEADER = CONFIG.replace("identity:\n", "identity:\n  would_deny: X-Would-Deny\n")
OBSERVE = WITH_HEADER + "mode: observe\n"
IDENTITY = {b"x-key", b"x-name", b"x-trace"}


@asynccontextmanager
async def world_of(folder: Path, config: str) -> AsyncIterator[World]:
    made = await make_world(folder, config)
    try:
        yield made
    finally:
        await made.store.close()


@pytest.fixture
async def observing(tmp_path: Path) -> AsyncIterator[World]:
    async with world_of(tmp_path, OBSERVE) as made:
        yield made


async def goes_on(world: World, method: str, target: str, reason: Reason, **more: Any) -> Allow:
    """Asserts that it is forwarded, with the reason that would have refused it."""
    allow = await world.allows(method, target, **more)
    assert allow.would_deny is not None
    assert allow.would_deny.reason is reason
    assert (b"X-Would-Deny", reason.encode()) in allow.headers
    return allow


def names(allow: Allow) -> set[bytes]:
    return {name.lower() for name, _ in allow.headers}


# What is observed, and the identity of the request.


async def test_a_request_without_a_key_is_forwarded_anonymously(observing: World) -> None:
    forged = {"X-Key": "key_1", "X-Name": "root", "X-Would-Deny": "nothing"}
    allow = await goes_on(observing, "GET", "/items/1", Reason.MISSING_CREDENTIAL, **forged)
    assert allow.principal is None
    assert IDENTITY.isdisjoint(names(allow))
    assert [value for name, value in allow.headers if name == b"X-Would-Deny"] == [b"missing_credential"]
    assert allow.target == "/items/1"


async def test_requests_allowed_in_any_case_are_not_reported(observing: World) -> None:
    text, _ = await observing.issue("read")
    for more in ({"key": text}, {"key": text, "X-Would-Deny": "missing_credential"}):
        allow = await observing.allows("GET", "/items/1", **more)
        assert allow.would_deny is None
        assert b"x-would-deny" not in names(allow)


@pytest.mark.parametrize("wrong", ["hv_live_tooshort", "basic", "unknown", "two lines of a scheme"])
async def test_a_wrong_key_is_removed_and_gives_no_identity(observing: World, wrong: str) -> None:
    text, _ = await observing.issue("read")
    value, reason = {
        "hv_live_tooshort": ("Bearer hv_live_tooshort", Reason.INVALID_KEY),
        "basic": ("Basic aHZfbGl2ZV9rZXk6cGFzc3dvcmQ=", Reason.MALFORMED_CREDENTIAL),
        "unknown": (f"Bearer {unknown(text)}", Reason.INVALID_KEY),
        "two lines of a scheme": ("Digest username=a, realm=b, nonce=c", Reason.MALFORMED_CREDENTIAL),
    }[wrong]
    copy = value.partition(" ")[2]
    forged = {"X-Key": "key_1", "X-Name": "root"}
    more = {"Authorization": value, "X-Copy": copy, "Cookie": f"a=1; b={copy}", **forged}
    allow = await goes_on(observing, "GET", "/items/1", reason, **more)
    assert allow.principal is None
    assert IDENTITY.isdisjoint(names(allow))
    assert not any(copy.encode() in value for _, value in allow.headers)


async def test_a_wrong_key_is_removed_even_if_keys_are_forwarded(tmp_path: Path) -> None:
    async with world_of(tmp_path, OBSERVE.replace("  failures:", "  forward_credential: true\n  failures:")) as world:
        text, _ = await world.issue()
        allow = await goes_on(world, "GET", "/items/1", Reason.INVALID_KEY, key=unknown(text))
        assert b"authorization" not in names(allow)
        allow = await goes_on(world, "GET", "/items/1", Reason.INSUFFICIENT_SCOPE, key=text)
        assert (b"Authorization", f"Bearer {text}".encode()) in allow.headers


async def test_a_wrong_key_in_the_query_or_a_cookie_is_removed(tmp_path: Path) -> None:
    sources = "{header: X-Api-Key}, {query: key}, {cookie: key}]"
    async with world_of(tmp_path, OBSERVE.replace("{header: X-Api-Key}]", sources)) as world:
        for value in ("nonsense-of-some-length", next(strangers())):
            world.clock.now += 60
            allow = await goes_on(world, "GET", f"/items/1?a=1&key={value}&b=2", Reason.INVALID_KEY)
            assert allow.target == "/items/1?a=1&b=2"
            assert allow.key_in_query
            allow = await goes_on(world, "GET", "/items/1", Reason.INVALID_KEY, Cookie=f"a=1; key={value}; b=2")
            assert (b"Cookie", b"a=1; b=2") in allow.headers


async def test_a_wrong_key_among_protocols_is_removed_and_the_others_stay(tmp_path: Path) -> None:
    sources = "{header: Sec-WebSocket-Protocol}]"
    async with world_of(tmp_path, OBSERVE.replace("{header: X-Api-Key}]", sources)) as world:
        for key in (next(strangers()), "hv_live_nope"):
            sent = {"Sec-WebSocket-Protocol": f"chat, {key}"}
            allow = await goes_on(world, "GET", "/items/1", Reason.INVALID_KEY, **sent)
            assert (b"Sec-WebSocket-Protocol", b"chat") in allow.headers


async def test_a_path_without_a_route_loses_the_prefix_as_others_do(tmp_path: Path) -> None:
    upstream = "{url: http://127.0.0.1:1/base, strip_prefix: /api}"
    async with world_of(tmp_path, OBSERVE.replace("http://127.0.0.1:1", upstream)) as world:
        allow = await goes_on(world, "GET", "/api/x?a=%2F", Reason.MISSING_CREDENTIAL)
        assert allow.target == "/base/x?a=%2F"
        for target in ("/other", "/%61pi/x", "/api/a/../../api/x", "/api//x"):
            await world.denies("GET", target)


@pytest.mark.parametrize(
    ("method", "target", "granted", "reason"),
    [
        ("GET", "/items/1", {}, Reason.INSUFFICIENT_SCOPE),
        ("GET", "/o/acme/e/live/x", {"tenant": "globex"}, Reason.WRONG_TENANT),
        ("GET", "/o/acme/e/test/x", {"tenant": "acme"}, Reason.WRONG_ENVIRONMENT),
        ("GET", "/live/x", {"prefix": "hv_test_"}, Reason.WRONG_ENVIRONMENT),
        ("GET", "/nowhere", {}, Reason.NO_ROUTE),
    ],
)
async def test_a_valid_key_without_access_is_forwarded_with_its_identity(
    observing: World, method: str, target: str, granted: dict[str, Any], reason: Reason
) -> None:
    text, key = await observing.issue(**granted)
    allow = await goes_on(observing, method, target, reason, key=text, **{"X-Key": "key_1"})
    assert allow.principal is not None
    assert allow.principal.key.id == key.id
    assert [value for name, value in allow.headers if name == b"X-Key"] == [key.id.encode()]
    assert not any(text.encode() in value for _, value in allow.headers)


async def test_an_unmatched_request_is_forwarded_only_if_it_has_one_reading(observing: World) -> None:
    allow = await goes_on(observing, "GET", "/nowhere/%41;v=1?q=%2F", Reason.MISSING_CREDENTIAL)
    assert allow.target == "/nowhere/%41;v=1?q=%2F"
    assert allow.route.name == "(none)"


async def test_an_exhausted_observed_quota_reports_its_count_without_a_wait(observing: World) -> None:
    text, _ = await observing.issue()
    for left in ((2, 6), (1, 2)):
        allow = await observing.allows("GET", "/counted/x", key=text)
        assert tuple(state.remaining for state in allow.quota_states) == left
    for _ in range(3):
        allow = await goes_on(observing, "GET", "/counted/x", Reason.QUOTA_EXCEEDED, key=text)
        assert tuple(state.remaining for state in allow.quota_states) == (1, 2)
        fields = dict(observing.responses.client_headers(allow.principal, allow.quota_states, observing.clock.now))
        assert b"Retry-After" not in fields
        assert fields[b"X-RateLimit-Remaining"] == b"1"
        quota = allow.would_deny.quota if allow.would_deny is not None else None
        assert quota is not None
        assert (quota.quota.name, quota.limit) == ("video", 10)
        assert quota.retry_after_seconds > 0


async def test_what_two_ways_look_up_for_one_request_counts_once(observing: World) -> None:
    """The shorter path leaves refusals to the longer one, which knows what is observed."""
    text, _ = await observing.issue()
    cache = KeyCache(observing.store.keys, size=10)
    gate = Gate(
        observing.gate.config,
        cache,
        MemoryLimiter(),
        hasher=observing.hasher,
        clock=observing.clock,
        new_request_id=lambda: "made",
    )
    match = gate.routes.match("POST", "/items/1")
    for presented, found in ((text, (1, 0)), (KeyFormat().make("hv_live_", lambda _: 7), (1, 1))):
        headers = ((b"Host", b"api.test"), (b"X-Api-Key", presented.encode()))
        request = RequestHead(method="POST", target="/items/1", headers=headers, peer="198.51.100.7")
        credential = KnownCredential(sha256(presented.encode()).digest(), presented.encode())
        understood = Understood(match, "/items/1", [], b"api.test", credential=credential)
        assert isinstance(await gate.decide(request), Allow)
        assert gate.decide_now(request, understood) is None
        assert isinstance(await gate.decide(request), Allow)
        assert (cache.hits, cache.negative_hits) == found


async def test_the_first_refusal_is_reported(observing: World) -> None:
    text, _ = await observing.issue(tenant="globex")
    allow = await goes_on(observing, "GET", "/o/acme/e/test/x", Reason.WRONG_TENANT, key=text)
    assert allow.would_deny is not None
    assert allow.would_deny.because == "the mode of the file is observe"


# What is always enforced.


@pytest.mark.requirement("S4.3")
@pytest.mark.parametrize("ended", ["disabled", "revoked", "expired", "retired"])
async def test_a_key_that_has_ended_stays_refused(observing: World, ended: str) -> None:
    changes: dict[str, Any] = {"expired": {"expires_at": NOW_US - 1}, "retired": {"retires_at": NOW_US - 1}}.get(
        ended, {}
    )
    text, key = await observing.issue("read", **changes)
    if ended in ("disabled", "revoked"):
        await set_status(observing.store.keys, key.id, KeyStatus(ended))
    for target in ("/items/1", "/public/x", "/nowhere"):
        assert (await observing.denies("GET", target, key=text)).reason.value == f"{ended}_key"


async def test_an_unavailable_store_lets_nobody_through(observing: World) -> None:
    text, _ = await observing.issue("read")
    observing.move_store()
    for target in ("/items/1", "/public/x", "/nowhere"):
        assert (await observing.denies("GET", target, key=text)).reason is Reason.STORE_UNAVAILABLE


class Broken(MemoryLimiter):
    """An unavailable limiter; `immediate` like the others."""

    def take_now(self, buckets: Sequence[Bucket], now: float) -> Taken:
        raise Fault(Reason.LIMITER_UNAVAILABLE)


async def test_an_unavailable_limiter_lets_nobody_through(observing: World) -> None:
    gate = Gate(
        observing.gate.config,
        KeyCache(observing.store.keys, size=10, grace=observing.grace),
        Broken(),
        hasher=observing.hasher,
        clock=observing.clock,
        new_request_id=lambda: "made",
        failures=MemoryLimiter(),
    )
    world = replace(observing, gate=gate)
    text, _ = await observing.issue(tenant="acme")
    for target, key in (("/counted/x", text), ("/public/x", "")):
        assert (await world.denies("GET", target, key=key)).reason is Reason.LIMITER_UNAVAILABLE
    assert (await world.denies("GET", "/public/x", key=unknown(text))).reason is Reason.LIMITER_UNAVAILABLE


@pytest.mark.requirement("S1.1")
@pytest.mark.parametrize("climb", CLIMBS)
async def test_a_path_with_two_readings_stays_refused(observing: World, climb: str) -> None:
    text, _ = await observing.issue("read")
    for more in ({}, {"key": text}, {"key": unknown(text)}):
        await observing.denies("GET", climb, **more)


async def test_differing_readings_are_never_forwarded_even_if_refused_alike(observing: World) -> None:
    assert (await observing.denies("GET", "/items/..%2fcounted/x")).reason is Reason.MISSING_CREDENTIAL


@pytest.mark.requirement("S2.5")
async def test_two_credentials_stay_refused(observing: World) -> None:
    text, _ = await observing.issue("read")
    for key, other in ((text, unknown(text)), (unknown(text), text), (unknown(text), "other"), (text, "hv_live_x")):
        denied = await observing.denies("GET", "/items/1", key=key, **{"X-Api-Key": other})
        assert denied.reason in (Reason.MALFORMED_CREDENTIAL, Reason.INVALID_KEY)


@pytest.mark.requirement("S2.4")
async def test_a_key_in_a_query_where_none_is_looked_for_stays_refused(observing: World) -> None:
    text, _ = await observing.issue("read")
    for more in ({}, {"key": "nonsense"}):
        assert (await observing.denies("GET", f"/items/1?x={text}", **more)).reason in (
            Reason.MALFORMED_CREDENTIAL,
            Reason.INVALID_KEY,
        )


@pytest.mark.parametrize(
    ("method", "target", "more"),
    [
        ("GET", "/items/%00", {}),
        ("TRACE", "/items/1", {}),
        ("FROBNICATE", "/items/1", {}),
        ("GET", "items", {}),
        ("GET", "/items/1", {"Authorization": "Bearer \x01"}),
    ],
)
async def test_malformed_requests_stay_refused(
    observing: World, method: str, target: str, more: dict[str, str]
) -> None:
    await observing.denies(method, target, **more)


async def test_holes_refusals_of_keys_and_own_responses_stay(tmp_path: Path) -> None:
    config = OBSERVE.replace("  - GET /me", '  - "* /items/hidden/**": {deny: true}\n  - GET /me')
    async with world_of(tmp_path, config) as world:
        text, _ = await world.issue("read")
        assert (await world.denies("GET", "/items/hidden/x", key=text)).reason is Reason.NO_ROUTE
        assert (await world.denies("GET", "/items/hidden/x")).reason is Reason.MISSING_CREDENTIAL
        assert (await world.denies("GET", "/sessions/x", key=text)).reason is Reason.KEY_NOT_ACCEPTED
        assert (await world.denies("GET", "/me")).reason is Reason.MISSING_CREDENTIAL
        assert (await world.denies("GET", "/me", key=unknown(text))).reason is Reason.INVALID_KEY


async def test_wrong_keys_are_counted_and_then_cost_the_store_no_lookup(observing: World) -> None:
    chance = strangers()
    for _ in range(3):
        await goes_on(observing, "GET", "/items/1", Reason.INVALID_KEY, key=next(chance))
    await goes_on(observing, "GET", "/items/1", Reason.TOO_MANY_FAILURES, key=next(chance))
    for _ in range(400):
        await goes_on(observing, "GET", "/items/1", Reason.TOO_MANY_FAILURES, key=next(chance))
    text, _ = await observing.issue("read")
    # No more lookups: the bound on lookups is enforced, and a key that is not looked up gives no identity.
    assert (await goes_on(observing, "GET", "/items/1", Reason.TOO_MANY_FAILURES, key=text)).principal is None
    other = await observing.allows("GET", "/items/1", key=text, peer="203.0.113.9")
    assert other.principal is not None


# Which mode decides.


ROUTE = "  - GET /items/**: {scopes: [read]}\n"


@pytest.mark.parametrize(
    ("replaced", "by", "passes"),
    [
        (ROUTE, "  - GET /items/**: {scopes: [read], mode: observe}\n", True),
        (ROUTE, "  - path: /items\n    mode: observe\n    routes: [{GET /**: {scopes: [read]}}]\n", True),
        (
            ROUTE,
            "  - path: /items\n    mode: observe\n    routes: [{GET /**: {scopes: [read], mode: enforce}}]\n",
            False,
        ),
        ("plans:", "defaults: {mode: observe}\nplans:", True),
        ("plans:", "mode: observe\ndefaults: {mode: enforce}\nplans:", False),
        ("  read: Read\n", "  read: {description: Read, mode: observe}\n", True),
        ("plans:", "mode: enforce\nplans:", False),
        ("scopes:\n  read: Read\n", "mode: observe\nscopes:\n  read: {mode: enforce}\n", False),
        (
            "scopes:\n  read: Read\n",
            "defaults: {mode: enforce}\nscopes:\n  read: {mode: observe}\n",
            False,
        ),
    ],
)
async def test_the_most_specific_mode_wins(tmp_path: Path, replaced: str, by: str, passes: bool) -> None:
    assert replaced in WITH_HEADER
    async with world_of(tmp_path, WITH_HEADER.replace(replaced, by, 1)) as world:
        text, _ = await world.issue()
        if passes:
            await goes_on(world, "GET", "/items/1", Reason.INSUFFICIENT_SCOPE, key=text)
        else:
            assert (await world.denies("GET", "/items/1", key=text)).reason is Reason.INSUFFICIENT_SCOPE


async def test_a_scope_that_observes_opens_nothing_else_of_its_route(tmp_path: Path) -> None:
    config = WITH_HEADER.replace("  read: Read\n", "  read: {mode: observe}\n").replace(
        '"* /o/{org}/e/{env}/**": {', '"* /o/{org}/e/{env}/**": {scopes: [read], '
    )
    async with world_of(tmp_path, config) as world:
        text, _ = await world.issue(tenant="acme")
        await goes_on(world, "GET", "/o/acme/e/live/x", Reason.INSUFFICIENT_SCOPE, key=text)
        assert (await world.denies("GET", "/o/globex/e/live/x", key=text)).reason is Reason.WRONG_TENANT
        assert (await world.denies("POST", "/items/1", key=text)).reason is Reason.INSUFFICIENT_SCOPE
        assert (await world.denies("GET", "/items/1")).reason is Reason.MISSING_CREDENTIAL


async def test_an_observed_quota_does_not_override_an_enforced_one(tmp_path: Path) -> None:
    config = WITH_HEADER.replace("  video: {limit: 10, per: hour}", "  video: {limit: 3, per: hour, mode: observe}")
    async with world_of(tmp_path, config) as world:
        text, _ = await world.issue()
        for left in (2, 1, 0):
            allow = await goes_on(world, "GET", "/counted/x", Reason.QUOTA_EXCEEDED, key=text)
            assert allow.would_deny is not None
            assert allow.would_deny.because == "the mode of quota video is observe"
            assert {state.quota.name: state.remaining for state in allow.quota_states} == {"general": left, "video": 3}
        denied = await world.denies("GET", "/counted/x", key=text)
        assert denied.refused_quota is not None
        assert denied.refused_quota.quota.name == "general"


@pytest.mark.parametrize(("mode", "waits"), [("observe", False), ("enforce", True)])
async def test_a_refusal_names_no_time_to_wait_for_a_quota_that_is_observed(
    tmp_path: Path, mode: str, waits: bool
) -> None:
    config = WITH_HEADER.replace("video: {limit: 10,", f"video: {{limit: 3, mode: {mode},").replace(
        "{all_scopes: [read, write]}", "{all_scopes: [read, write], quotas: [{quota: video, cost: 4}]}"
    )
    async with world_of(tmp_path, config) as world:
        text, _ = await world.issue("read")
        denied = await world.denies("POST", "/items/1", key=text)
        assert denied.reason is Reason.INSUFFICIENT_SCOPE
        assert [state.remaining for state in denied.quota_states] == [3]
        fields = dict(world.responses.denied(denied, world.clock.now).headers)
        assert (b"Retry-After" in fields) is waits


async def test_a_named_key_keeps_working_and_no_other_does(tmp_path: Path) -> None:
    async with world_of(tmp_path, WITH_HEADER) as world:
        text, named = await world.issue()
        other, unnamed = await world.issue()
        config = WITH_HEADER.replace("  failures:", f"  observe: [{named.id}]\n  failures:")
    (tmp_path / "again").mkdir()
    async with world_of(tmp_path / "again", config) as world:
        await world.store.keys.add([named, unnamed], actor=ANN)
        await goes_on(world, "GET", "/items/1", Reason.INSUFFICIENT_SCOPE, key=text)
        await goes_on(world, "GET", "/nowhere", Reason.NO_ROUTE, key=text)
        assert (await world.denies("GET", "/items/1", key=other)).reason is Reason.INSUFFICIENT_SCOPE
        assert (await world.denies("GET", "/items/1")).reason is Reason.MISSING_CREDENTIAL


async def test_paths_without_a_route_are_observed_by_themselves(tmp_path: Path) -> None:
    for mode, whole in (("observe", ""), ("enforce", "mode: observe\n")):
        folder = tmp_path / mode
        folder.mkdir()
        async with world_of(folder, WITH_HEADER + f"unmatched: {{mode: {mode}}}\n{whole}") as world:
            text, _ = await world.issue()
            if mode == "observe":
                await goes_on(world, "GET", "/nowhere", Reason.NO_ROUTE, key=text)
                await world.denies("GET", "/items/1", key=text)
            else:
                await world.denies("GET", "/nowhere", key=text)
                await goes_on(world, "GET", "/items/1", Reason.INSUFFICIENT_SCOPE, key=text)


async def test_a_trailing_slash_passes_only_if_both_routes_allow_it(tmp_path: Path) -> None:
    routes = "  - GET /twin/{id}: {scopes: [read], mode: enforce}\n  - GET /twin/**: {scopes: [read]}\n  - GET /me"
    async with world_of(tmp_path, OBSERVE.replace("  - GET /me", routes)) as world:
        assert (await world.denies("GET", "/twin/1/")).reason is Reason.MISSING_CREDENTIAL
        await goes_on(world, "GET", "/twin/1/2/", Reason.MISSING_CREDENTIAL)


# Streams.


async def test_a_stream_allowed_by_observe_mode_is_not_cut(observing: World) -> None:
    text, key = await observing.issue("read", tenant="acme")
    for target in ("/items/1", "/nowhere", "/o/acme/e/live/x"):
        head = RequestHead(
            method="GET",
            target=target,
            headers=((b"Host", b"api.test"), (b"Authorization", f"Bearer {text}".encode())),
            peer="198.51.100.7",
        )
        allow = await observing.allows("GET", target, key=text)
        now = await changed(observing, key, scopes=(), tenant="globex")
        assert observing.gate.reauthorize(head, allow, now) is None
    await set_status(observing.store.keys, key.id, KeyStatus.REVOKED)
    assert await observing.gate.revalidate(key) is Reason.REVOKED_KEY
