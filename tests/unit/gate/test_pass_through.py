"""A credential that is not ours lets a caller pass only where the upstream gets it, as it came, to verify."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sidecar.core.errors import Reason
from sidecar.core.model import Allow, Deny, RequestHead
from tests.unit.gate.world import CONFIG, World, make_world

PASSING = """\
  from: [{header: X-Api-Key}]
  pass_through:
    - {header: Authorization, scheme: Basic}
    - {header: X-Session}
    - {header: X-Forwarded-User}
    - {header: X-Auth-Request-User}
    - {header: X-Real-IP}
    - {cookie: session}
"""
PROXY, STRANGER = "10.0.0.1", "198.51.100.7"
FROM_ANYONE = [("Authorization", "Basic eDp5"), ("X-Session", "s3"), ("Cookie", "a=b; session=1")]
FROM_PROXIES = [("X-Forwarded-User", "ann"), ("X-Auth-Request-User", "ann"), ("X-Real-IP", "192.0.2.1")]


def configured() -> str:
    lines = [
        line for line in CONFIG.splitlines(keepends=True) if "from: [" not in line and "pass_through: [" not in line
    ]
    text = "".join(lines).replace("keys:\n", f"keys:\n{PASSING}")
    return f"trusted_proxies: [{PROXY}]\n{text}".replace("identity:\n", "identity:\n  keep: [X-Auth-Request-User]\n")


@pytest.fixture
async def passing(tmp_path: Path) -> AsyncIterator[World]:
    made = await make_world(tmp_path, configured())
    yield made
    await made.store.close()


@asynccontextmanager
async def opened(folder: Path, config: str) -> AsyncIterator[World]:
    made = await make_world(folder, config)
    try:
        yield made
    finally:
        await made.store.close()


async def decided(
    world: World, *fields: tuple[str, str], peer: str = STRANGER, target: str = "/items/1", forwards: bool = True
) -> Allow | Deny:
    """forwards: the sidecar itself sends the request on, and no proxy that only asks."""
    headers = tuple((name.encode(), value.encode()) for name, value in (("Host", "api.test"), *fields))
    head = RequestHead(method="GET", target=target, headers=headers, peer=peer)
    return await world.gate.decide(head, remove_copies=forwards)


@pytest.mark.parametrize("peer", [PROXY, STRANGER])
@pytest.mark.parametrize("forwards", [True, False], ids=["data", "forward auth"])
@pytest.mark.parametrize("field", FROM_ANYONE)
async def test_anyone_may_send_a_header_that_is_passed_on(
    passing: World, field: tuple[str, str], peer: str, forwards: bool
) -> None:
    decision = await decided(passing, field, peer=peer, forwards=forwards)
    assert isinstance(decision, Allow)
    assert decision.pass_through
    assert decision.principal is None
    assert tuple(text.encode() for text in field) in decision.headers


@pytest.mark.parametrize("field", FROM_PROXIES)
async def test_headers_of_trusted_proxies_count_only_from_them(passing: World, field: tuple[str, str]) -> None:
    decision = await decided(passing, field, peer=PROXY)
    assert isinstance(decision, Allow)
    assert tuple(text.encode() for text in field) in decision.headers
    refused = await decided(passing, field)
    assert isinstance(refused, Deny)
    assert refused.reason is Reason.MISSING_CREDENTIAL
    public = await decided(passing, field, target="/public/1")
    assert isinstance(public, Allow)
    assert field[0].encode() not in dict(public.headers)


@pytest.mark.parametrize("field", FROM_PROXIES)
async def test_a_subrequest_proxy_forwards_its_clients_headers(passing: World, field: tuple[str, str]) -> None:
    refused = await decided(passing, field, peer=PROXY, forwards=False)
    assert isinstance(refused, Deny)
    assert refused.reason is Reason.MISSING_CREDENTIAL


@pytest.mark.parametrize("field", [*FROM_ANYONE, *FROM_PROXIES])
async def test_a_field_removed_by_connection_does_not_count(passing: World, field: tuple[str, str]) -> None:
    for options in (field[0], f"close, {field[0].lower()}"):
        decision = await decided(passing, field, ("Connection", options), peer=PROXY)
        assert isinstance(decision, Deny)


@pytest.mark.parametrize("field", [*FROM_ANYONE, *FROM_PROXIES])
async def test_two_fields_of_one_foreign_credential_are_refused(passing: World, field: tuple[str, str]) -> None:
    assert isinstance(await decided(passing, field, field, peer=PROXY), Deny)
    assert isinstance(await decided(passing, field, field, peer=PROXY, target="/public/1"), Allow)


@pytest.mark.parametrize("name", ["X_Session", "x.session", "X--Session", "X_Forwarded_User", "X_Auth_Request_User"])
async def test_a_name_that_only_looks_like_one_neither_counts_nor_passes(passing: World, name: str) -> None:
    assert isinstance(await decided(passing, (name, "s"), peer=PROXY), Deny)
    beside = await decided(passing, (name, "s"), ("X-Session", "s3"), peer=PROXY)
    assert isinstance(beside, Allow)
    assert name.encode() not in dict(beside.headers)


async def test_a_key_counts_next_to_any_other_credential(passing: World) -> None:
    text, key = await passing.issue("read")
    for field in [*FROM_ANYONE, *FROM_PROXIES]:
        for fields in ((field,), (field, field)):
            decision = await decided(passing, ("X-Api-Key", text), *fields)
            assert isinstance(decision, Allow)
            assert decision.principal is not None
            assert decision.principal.key.id == key.id


@pytest.mark.parametrize("field", FROM_ANYONE)
async def test_next_to_a_key_no_other_credential_reaches_the_upstream(passing: World, field: tuple[str, str]) -> None:
    text, _ = await passing.issue("read")
    decision = await decided(passing, ("X-Api-Key", text), ("X-Other", "o"), field)
    assert isinstance(decision, Allow)
    sent = dict(decision.headers)
    assert sent.get(field[0].encode()) == (b"a=b" if field[0] == "Cookie" else None)
    assert sent[b"X-Other"] == b"o"
    asked = await decided(passing, ("X-Api-Key", text), ("X-Other", "o"), field, forwards=False)
    assert isinstance(asked, Deny)
    assert asked.reason is Reason.BAD_HEADER


@pytest.mark.parametrize(
    "pair",
    [
        "session =1", "\tsession\t=1", "Session=1", "sess%69on=1", '"session"=1', "b=1, session=1", "b=1 session=1",
        "b=1,SESSION = 1", "session",
    ],
)  # fmt: skip
async def test_beside_a_key_no_spelling_of_the_cookie_reaches_the_upstream(passing: World, pair: str) -> None:
    text, _ = await passing.issue("read")
    field = ("Cookie", f"a=session; {pair}; c=my session")
    decision = await decided(passing, ("X-Api-Key", text), field)
    assert isinstance(decision, Allow)
    assert dict(decision.headers)[b"Cookie"] == b"a=session; c=my session"
    assert isinstance(await decided(passing, ("X-Api-Key", text), field, forwards=False), Deny)


@pytest.mark.parametrize("field", [*FROM_ANYONE, *FROM_PROXIES])
async def test_foreign_credentials_stay_if_the_configuration_keeps_them(tmp_path: Path, field: tuple[str, str]) -> None:
    text = configured().replace("keys:\n", "keys:\n  pass_through_with_key: keep\n")
    async with opened(tmp_path, text) as keeping:
        key, _ = await keeping.issue("read")
        decision = await decided(keeping, ("X-Api-Key", key), field, peer=PROXY)
        assert isinstance(decision, Allow)
        assert tuple(part.encode() for part in field) in decision.headers
        assert isinstance(await decided(keeping, ("X-Api-Key", key), field, forwards=False), Allow)


@pytest.mark.parametrize("scope", ["read", "*"])
async def test_a_route_for_sessions_accepts_no_key(world: World, scope: str) -> None:
    text, _ = await world.issue(scope)
    for method, target in [("GET", "/sessions/1"), ("DELETE", "/sessions"), ("POST", "/signin")]:
        refused = await world.denies(method, target, key=text)
        assert (refused.reason, refused.route and refused.route.pattern[:3]) == (
            Reason.KEY_NOT_ACCEPTED,
            target[:3],
        )
        assert (await world.denies(method, target, key="hv_live_nope")).reason is Reason.INVALID_KEY
        assert (await world.denies(method, target, key=text, Cookie="session=1")).reason is Reason.KEY_NOT_ACCEPTED
        assert (await world.allows(method, target, Cookie="session=1")).principal is None
        assert (await world.allows(method, target, key="a.b.c")).principal is None


async def test_only_where_it_is_public_a_request_without_a_credential_passes(world: World) -> None:
    assert (await world.denies("GET", "/sessions/1")).reason is Reason.MISSING_CREDENTIAL
    assert (await world.allows("POST", "/signin")).principal is None


@pytest.mark.parametrize("public", [True, False])
async def test_sessions_may_pass_where_no_route_matches(tmp_path: Path, public: bool) -> None:
    text = CONFIG + f"unmatched: {{pass_through: only{', public: true' if public else ''}}}\n"
    async with opened(tmp_path, text) as world:
        key, _ = await world.issue("*")
        for target in ("/", "/nowhere", "/a/b/", "/signin"):
            assert (await world.denies("GET", target, key=key)).reason is Reason.NO_ROUTE
            assert (await world.allows("GET", target, Cookie="session=1")).principal is None
            decision = await world.decide("GET", target)
            assert isinstance(decision, Allow) or decision.reason is Reason.MISSING_CREDENTIAL
            assert isinstance(decision, Allow) == public
        for target in ("/live/1/", "/live/"):
            assert (await world.denies("GET", target, Cookie="session=1")).reason is Reason.INVALID_KEY
        climbing = await world.denies("GET", "/x/..%2flive/1", Cookie="session=1")
        assert climbing.reason is Reason.AMBIGUOUS_TARGET


async def test_the_header_of_keys_counts_only_where_it_stays(world: World) -> None:
    token = ("Authorization", "Bearer a.b-c")
    assert isinstance(await decided(world, token), Allow)
    refused = await decided(world, token, ("Connection", "authorization"))
    assert isinstance(refused, Deny)
    beside = await decided(world, token, ("Connection", "authorization"), ("Cookie", "session=1"))
    assert isinstance(beside, Allow)
    assert b"Authorization" not in dict(beside.headers)
