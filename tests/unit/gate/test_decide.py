"""Gate.decide: who may access what, and what is forwarded."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.core.errors import Reason, status_of
from sidecar.core.model import Deny, KeyStatus, RequestHead
from sidecar.core.units import rfc3339
from tests.unit.gate.world import CONFIG, World, make_world
from tests.unit.keys.making import set_status

HEADER_NAMES = st.sampled_from(
    [b"Host", b"Authorization", b"X-Api-Key", b"Cookie", b"Connection", b"X_Key", b"X-Forwarded-For", b"X-Request-Id"]
)


async def test_without_a_key_only_what_is_public_is_allowed(world: World) -> None:
    assert (await world.allows("GET", "/public/x")).principal is None
    for method, target in (("GET", "/items/1"), ("POST", "/public/x"), ("GET", "/nowhere"), ("GET", "/me")):
        denied = await world.denies(method, target)
        assert denied.reason is Reason.MISSING_CREDENTIAL


async def test_a_key_opens_what_its_scopes_open_and_nothing_else(world: World) -> None:
    reader, _ = await world.issue("read")
    writer, _ = await world.issue("write")
    await world.allows("GET", "/items/1", key=reader)
    await world.allows("HEAD", "/items/1", key=reader)
    await world.allows("POST", "/items/1", key=writer)
    await world.allows("GET", "/items/1", key=writer)
    assert (await world.denies("POST", "/items/1", key=reader)).reason is Reason.INSUFFICIENT_SCOPE
    assert (await world.denies("DELETE", "/items/1", key=writer)).reason is Reason.NO_ROUTE
    assert (await world.denies("GET", "/nowhere", key=writer)).reason is Reason.NO_ROUTE


async def test_a_bad_key_is_refused_even_on_a_public_route(world: World) -> None:
    text, _ = await world.issue("read")
    wrong = text[:-1] + ("a" if text[-1] != "a" else "b")
    assert (await world.denies("GET", "/public/x", key=wrong)).reason is Reason.INVALID_KEY
    assert (await world.allows("GET", "/public/x", key=text)).principal is not None


async def test_the_upstream_gets_the_identity_and_not_the_key(world: World) -> None:
    text, key = await world.issue("read", name="Zoë")
    allow = await world.allows("GET", "/items/a%20b?c=%2F", key=text, X_Key="forged", X_Request_Id="r1", Accept="*/*")
    headers = dict(allow.headers)
    assert allow.target == "/items/a%20b?c=%2F"
    assert allow.host == b"api.test"
    assert headers[b"X-Key"] == key.id.encode()
    assert headers[b"X-Name"] == b"Zo%C3%AB"
    assert headers[b"X-Trace"] == headers[b"X-Request-Id"] == b"r1"
    assert headers[b"Accept"] == b"*/*"
    assert len(headers) == len(allow.headers)
    assert text.encode() not in b"".join(headers.values())
    assert b"Host" not in headers


async def test_a_request_without_an_id_gets_one(world: World) -> None:
    first, second = await world.allows("GET", "/public/1"), await world.allows("GET", "/public/2")
    assert first.request_id != second.request_id
    assert dict(first.headers)[b"X-Request-Id"] == first.request_id.encode()


async def test_a_revocation_takes_effect_on_the_next_request(world: World) -> None:
    text, key = await world.issue("read")
    await world.allows("GET", "/items/1", key=text)
    await set_status(world.store.keys, key.id, KeyStatus.DISABLED, at=1)
    assert (await world.denies("GET", "/items/1", key=text)).reason is Reason.DISABLED_KEY
    await set_status(world.store.keys, key.id, KeyStatus.ACTIVE, at=2)
    await world.allows("GET", "/items/1", key=text)
    await set_status(world.store.keys, key.id, KeyStatus.REVOKED, at=3)
    denied = await world.denies("GET", "/items/1", key=text)
    assert denied.reason is Reason.REVOKED_KEY
    assert denied.key is not None
    assert denied.key.id == key.id
    assert denied.principal is None


async def test_a_key_expires_while_it_is_in_memory(world: World) -> None:
    text, _ = await world.issue("read", expires_at=int((world.clock.now + 10) * 1_000_000))
    await world.allows("GET", "/items/1", key=text)
    world.clock.now += 10
    assert (await world.denies("GET", "/items/1", key=text)).reason is Reason.EXPIRED_KEY
    assert (await world.denies("GET", "/public/1", key=text)).reason is Reason.EXPIRED_KEY


async def test_tenant_and_environment_are_those_of_the_path(world: World) -> None:
    text, _ = await world.issue(tenant="acme")
    everyone, _ = await world.issue(tenant="*", environment="*")
    await world.allows("PATCH", "/o/acme/e/live/x", key=text)
    await world.allows("PATCH", "/o/other/e/test/x", key=everyone)
    assert (await world.denies("GET", "/o/other/e/live/x", key=text)).reason is Reason.WRONG_TENANT
    assert (await world.denies("GET", "/o/acme/e/test/x", key=text)).reason is Reason.WRONG_ENVIRONMENT
    tested, _ = await world.issue(prefix="hv_test_", tenant="acme")
    assert (await world.denies("GET", "/live/x", key=tested)).reason is Reason.WRONG_ENVIRONMENT
    await world.allows("GET", "/live/x", key=text)


async def test_a_foreign_credential_passes_unchanged_without_an_identity(world: World) -> None:
    bearer = await world.allows("GET", "/items/1", Authorization="Bearer a.jwt.x", X_Key="forged")
    assert (b"Authorization", b"Bearer a.jwt.x") in bearer.headers
    cookie = await world.allows("GET", "/items/1", Cookie="session=1", X_Name="forged")
    assert (b"Cookie", b"session=1") in cookie.headers
    for allow in (bearer, cookie):
        assert allow.principal is None
        assert not {b"X-Key", b"X-Name", b"X-Trace"} & {name for name, _ in allow.headers}


async def test_a_foreign_credential_does_not_pass_if_the_route_or_the_table_forbids_it(world: World) -> None:
    for target in ("/live/x", "/me"):
        denied = await world.denies("GET", target, Authorization="Bearer a.jwt.x")
        assert status_of(denied.reason) == 401
    assert (await world.denies("GET", "/nowhere", Cookie="session=1")).reason is Reason.MISSING_CREDENTIAL


async def test_a_static_response_can_describe_the_key(world: World) -> None:
    text, key = await world.issue()
    allow = await world.allows("GET", "/me", key=text)
    assert allow.route.policy.respond is not None
    response = world.responses.static_response(allow, allow.route.policy.respond, world.clock.seconds())
    assert response.body == f'{{"id":"{key.id}"}}'.encode()


QUOTAS_TOLD = CONFIG.replace('/me: {respond: {id: "{key.id}"}}', '/me: {quotas: [video], respond: {left: "{quotas}"}}')


async def test_a_quota_report_lists_all_quotas_of_the_key_and_takes_only_from_its_own(tmp_path: Path) -> None:
    world = await make_world(
        tmp_path, QUOTAS_TOLD.replace("plans:", "  routed: {limit: 9, per: day, by: [key, route]}\nplans:")
    )
    text, _ = await world.issue(plan="pro")
    await world.allows("GET", "/counted/x", key=text)
    for video in (5, 4):
        allow = await world.allows("GET", "/me", key=text)
        assert allow.route.policy.respond is not None
        response = world.responses.static_response(allow, allow.route.policy.respond, world.clock.seconds())
        told = {each.pop("name"): each for each in json.loads(response.body)["left"]}
        assert told.keys() == {"general", "video"}
        assert (told["general"]["limit"], told["general"]["remaining"]) == (100, 99)
        assert (told["video"]["limit"], told["video"]["remaining"]) == (10, video)
        assert told["video"]["resets_at"] == rfc3339(int(allow.quota_states[0].resets_at) * 1_000_000)
    await world.store.close()


async def test_any_token_is_decided_on_by_the_route_that_names_it_or_takes_every_method(world: World) -> None:
    reader, _ = await world.issue("read")
    writer, _ = await world.issue("write")
    for method in ("LIST", "mirror"):
        assert (await world.allows(method, "/named/x", key=writer)).route.name == "LIST|mirror /named/**"
        assert (await world.denies(method, "/named/x", key=reader)).reason is Reason.INSUFFICIENT_SCOPE
    for method in ("PROPFIND", "M-SEARCH", "PURGE"):
        assert (await world.allows(method, "/named/x", key=reader)).route.name == "* /named/**"
        assert (await world.denies(method, "/named/x")).reason is Reason.MISSING_CREDENTIAL
        assert (await world.denies(method, "/items/x", key=writer)).reason is Reason.NO_ROUTE
    for method in ("BREW", "brew", "Sync", "list"):
        assert (await world.denies(method, "/named/x", key=reader)).reason is Reason.METHOD_NOT_ALLOWED


async def test_a_path_that_can_be_read_in_two_ways_is_refused(world: World) -> None:
    text, _ = await world.issue("read")
    for target in ("/public/../items/1", "/public/%2e%2e/items/1", "/public/a%2fb/%2e%2e/%2e%2e/items/1"):
        for key in ("", text):
            assert (await world.denies("GET", target, key=key)).reason is Reason.AMBIGUOUS_TARGET
    assert (await world.denies("GET", "/%6eowhere", key=text)).reason is Reason.NO_ROUTE


@pytest.mark.parametrize(
    ("method", "target", "reason"),
    [
        ("CONNECT", "api.test:80", Reason.METHOD_NOT_ALLOWED),
        ("TRACE", "/public/x", Reason.METHOD_NOT_ALLOWED),
        ("get", "/public/x", Reason.METHOD_NOT_ALLOWED),
        ("get", "/named/x", Reason.METHOD_NOT_ALLOWED),
        ("pRoPfInD", "/named/x", Reason.METHOD_NOT_ALLOWED),
        ("list", "/named/x", Reason.METHOD_NOT_ALLOWED),
        ("MIRROR", "/named/x", Reason.METHOD_NOT_ALLOWED),
        ("trace", "/named/x", Reason.METHOD_NOT_ALLOWED),
        ("LI ST", "/named/x", Reason.METHOD_NOT_ALLOWED),
        ("OPTIONS", "*", Reason.METHOD_NOT_ALLOWED),
        ("GET", "public", Reason.BAD_TARGET),
        ("GET", "http://evil.test/public/x", Reason.BAD_TARGET),
        ("GET", "/public/%ff", Reason.BAD_TARGET),
    ],
)
async def test_a_malformed_request_is_refused_before_its_key_is_checked(
    world: World, method: str, target: str, reason: Reason
) -> None:
    denied = await world.denies(method, target, key="hv_live_wrong")
    assert denied.reason is reason
    assert denied.request_id


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "get", "", "É"]) | st.text(max_size=8),
    target=st.text(max_size=40)
    | st.text(alphabet="/.%2eE5cf;\\publicite?#:", max_size=40).map(lambda text: f"/{text}"),
    headers=st.lists(st.tuples(HEADER_NAMES | st.binary(max_size=12), st.binary(max_size=30)), max_size=6),
    peer=st.sampled_from(["198.51.100.7", "::1", "fe80::1%eth0", "", "nonsense"]),
)
async def test_nothing_that_a_client_sends_raises(
    world: World, method: str, target: str, headers: list[tuple[bytes, bytes]], peer: str
) -> None:
    fields = ((b"Host", b"api.test"), *headers)
    decision = await world.gate.decide(RequestHead(method=method, target=target, headers=fields, peer=peer))
    if isinstance(decision, Deny):
        assert world.responses.denied(decision, world.clock.seconds()).status in {400, 401, 403, 405, 429}
    else:
        assert decision.route.policy.public or any(name == b"Cookie" for name, _ in headers) or _bearer(headers)
        assert decision.target


def _bearer(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"Authorization" for name, _ in headers)


async def test_a_path_may_call_an_environment_by_another_name(tmp_path: Path) -> None:
    aliases = "{live: {prefix: hv_live_, aliases: [production, prod]}, test: hv_test_}"
    world = await make_world(tmp_path, CONFIG.replace("{live: hv_live_, test: hv_test_}", aliases))
    try:
        (live, _), (test, _) = await world.issue(tenant="acme"), await world.issue(tenant="acme", prefix="hv_test_")
        for name in ("live", "production", "prod"):
            await world.allows("GET", f"/o/acme/e/{name}/x", key=live)
            denied = await world.denies("GET", f"/o/acme/e/{name}/x", key=test)
            assert denied.reason is Reason.WRONG_ENVIRONMENT
        assert (await world.denies("GET", "/o/acme/e/Production/x", key=live)).reason is Reason.WRONG_ENVIRONMENT
    finally:
        await world.store.close()


TELLING = CONFIG.replace(
    "  - GET /me",
    """  - "* /open/**": {}
  - DELETE /open/{id}: {deny: true}
  - GET /items/hidden/**: {deny: true}
  - GET /holes/**: {}
  - GET /holes/x: {deny: true}
  - GET /me""",
)


async def told(world: World, method: str, target: str, key: str) -> tuple[int, str, str]:
    """The status, `Allow`, and the reason that the response names."""
    denied = await world.denies(method, target, key=key)
    response = world.responses.denied(denied, world.clock.seconds())
    body = json.loads(response.body)
    assert (denied.reason, body["status"]) == (Reason.NO_ROUTE, response.status)
    return response.status, dict(response.headers).get(b"Allow", b"").decode(), body["code"]


@pytest.mark.parametrize(
    ("method", "target", "methods"),
    [
        ("DELETE", "/items/7", "GET, HEAD, POST"),
        ("PUT", "/items/7?a=b", "GET, HEAD, POST"),
        ("LIST", "/me", "GET, HEAD"),
        ("GET", "/signin", "POST"),
        ("DELETE", "/open/7", "GET, HEAD, POST, PUT, PATCH, OPTIONS, LIST, mirror"),
        ("GET", "/items/hidden/7", "POST"),
    ],
)
async def test_a_key_learns_the_methods_of_a_path_if_configured(
    tmp_path: Path, method: str, target: str, methods: str
) -> None:
    world = await make_world(tmp_path, TELLING + "unmatched: {method_not_allowed: true}\n")
    text, _ = await world.issue()
    assert await told(world, method, target, text) == (405, methods, "no_route")
    for credential, reason in (("", Reason.MISSING_CREDENTIAL), ("hv_live_nope", Reason.INVALID_KEY)):
        denied = await world.denies(method, target, key=credential)
        assert (denied.reason, denied.methods) == (reason, ())
    await world.store.close()


@pytest.mark.parametrize(
    ("config", "method", "target"),
    [
        (TELLING, "DELETE", "/items/7"),
        (TELLING + "unmatched: {method_not_allowed: true}\n", "GET", "/nowhere"),
        (TELLING + "unmatched: {method_not_allowed: true}\n", "GET", "/holes/x/"),
        (TELLING + "unmatched: {method_not_allowed: true, pass_through: only}\n", "GET", "/nowhere"),
    ],
    ids=["off", "no such path", "a hole for every method", "sessions only elsewhere"],
)
async def test_a_path_that_no_method_opens_is_a_403(tmp_path: Path, config: str, method: str, target: str) -> None:
    world = await make_world(tmp_path, config)
    text, _ = await world.issue()
    assert await told(world, method, target, text) == (403, "", "no_route")
    await world.store.close()


async def test_an_error_response_of_its_own_keeps_its_body_and_headers_with_a_405(tmp_path: Path) -> None:
    own = 'errors: {no_route: {status: 404, headers: {X-Help: docs}, body: {code: "{reason}", status: "{status}"}}}\n'
    world = await make_world(tmp_path, TELLING + own + "unmatched: {method_not_allowed: true}\n")
    text, _ = await world.issue()
    assert await told(world, "DELETE", "/items/7", text) == (405, "GET, HEAD, POST", "no_route")
    assert await told(world, "GET", "/nowhere", text) == (404, "", "no_route")
    headers = dict(world.responses.denied(await world.denies("PUT", "/me", key=text), 0.0).headers)
    assert headers[b"X-Help"] == b"docs"
    await world.store.close()
