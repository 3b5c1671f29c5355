"""Known request heads: the same outcome as on the longer path, and no secret is kept."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType, ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.apikey import KeyFormat
from sidecar.core.errors import Reason
from sidecar.core.headers import Memory
from sidecar.core.model import Allow, ApiKey, Bucket, Deny, KeyStatus, RequestHead, Taken
from sidecar.gate.gate import Gate
from sidecar.http.requests import HeadLimits, MalformedHead, read_head
from sidecar.keys.cache import KeyCache
from sidecar.keys.ports import StoreUnavailable
from sidecar.limiter.memory import MemoryLimiter
from sidecar.proxy.known_heads import KnownRequest, KnownRequests
from sidecar.proxy.known_responses import KnownResponses
from sidecar.proxy.response_parser import ResponseParser
from tests.harness.framing import AMBIGUOUS
from tests.harness.headers import BROKEN_LINES, FORWARDING, HOP_BY_HOP, STRIPPED
from tests.harness.targets import CLIMBS, DISGUISES
from tests.unit.gate.world import CONFIG, World, make_world
from tests.unit.keys.making import ANN

PEER, PROXY = "198.51.100.7", "10.0.0.1"
TRUSTING = CONFIG + "trusted_proxies: [10.0.0.0/8]\n"
SHARED = TRUSTING + "cors: {origins: [https://app.test]}\n"
OBSERVING = TRUSTING.replace("identity:\n", "identity:\n  would_deny: X-Would-Deny\n")
CONFIGS = [
    TRUSTING,
    TRUSTING.replace("  failures:", "  copies: refuse\n  failures:"),
    TRUSTING.replace("  failures:", "  forward_credential: true\n  failures:"),
    TRUSTING.replace("{header: X-Api-Key}]", "{header: X-Api-Key}, {query: key}, {cookie: key}]"),
    TRUSTING.replace(
        "  - GET /me",
        """  - GET /items/{id}:stop: {scopes: [write]}
  - GET /items/a-{id}: {}
  - "* /items/hidden/**": {deny: true}
  - GET /items/{id}: {public: true}
  - GET /items/a-{id}:stop: {}
  - GET /items/a-:stop: {}
  - GET /items/hidden: {deny: true}
  - GET /me""",
    ),
    TRUSTING.replace(
        "  - GET /me",
        """  - GET /items/7: {strip_prefix: /items}
  - GET /named/x: {strip_prefix: ""}
  - POST /items/7: {public: true, strip_prefix: /items/7, body: 2B, answer_timeout: 1s}
  - "* /sessions/x": {upstream: other}
  - GET /public/x: {public: true, upstream: other, strip_prefix: ""}
  - GET /me""",
    ).replace("http://127.0.0.1:1", "{url: http://127.0.0.1:1/base, strip_prefix: /named}")
    + "upstreams: {other: {url: http://127.0.0.1:2/other, strip_prefix: /sessions}}\n",
    SHARED,
    TRUSTING.replace("{header: X-Api-Key}]", "{header: X-Api-Key, scheme: Basic, as: username}]"),
    TRUSTING.replace("{header: X-Api-Key}]", "{header: Sec-WebSocket-Protocol}]"),
    TRUSTING.replace(
        "  - GET /me", "  - GET /named/x: {response: {status: 308, headers: {Location: /x}}}\n  - GET /me"
    ),
    TRUSTING.replace(", {cookie: session}]", ", {header: X-A}]") + "unmatched: {pass_through: only}\n",
    TRUSTING.replace("  failures:", "  pass_through_with_key: keep\n  imported: [{prefix: hv_live_}]\n  failures:")
    + "unmatched: {pass_through: only, public: true, quotas: [anonymous]}\n",
    TRUSTING + "unmatched: {method_not_allowed: true}\n",
    TRUSTING.replace(
        '/me: {respond: {id: "{key.id}"}}', '/me: {quotas: [general], respond: {id: "{key.id}", left: "{quotas}"}}'
    ),
    OBSERVING + "mode: observe\n",
    OBSERVING.replace("  read: Read\n", "  read: {mode: observe}\n").replace(
        "video: {limit", "video: {mode: observe, limit"
    ),
    OBSERVING.replace("/counted/**: {", "/counted/**: {mode: observe, ") + "unmatched: {mode: observe}\n",
]
METHODS = ["GET", "HEAD", "POST", "PUT", "get", "LIST", "mirror", "TRACE", "OPTIONS", "FROBNICATE"]
TARGETS = [
    "/items/7", "/items/7?a=b", "/items/7?a=%20b", "/items/7?a=<key>", "/items/7?key=<key>", "/items/<key>", "/items/",
    "/public/x", "/counted/x", "/items/7:stop",
    "/items/7:go", "/items/a-7", "/items/hidden", "/items/hidden/7", "/items/7%3Ago",
    "/o/acme/e/live/x", "/o/other/e/live/x", "/live/x", "/sessions/x", "/me",
    "/named/x", "/nowhere", "/signin", "*",
    "http://api.test/items/7", "/items/%37", "/items/a%20b", "/items/%zz", *CLIMBS[:4], *DISGUISES[:4],
]  # fmt: skip
LINES = [
    "Host: api.test", "Host: other.test:80", "host: api.test", "Host: a b", "Accept: */*", "User-Agent: test/1.0",
    "User-Agent: 100%25", "Content-Type: text/plain", "Connection: keep-alive", "Connection: close, X-A", "X-A: 1",
    "Cookie: session=1", "Cookie: a=b", "Cookie: a=<key>", "Cookie: key=<key>", "Referer: https://a.test/?k=<key>",
    "Referer: https://a.test/%20", "X-Request-Id: abc", "X-Request-Id: <key>", "X-Request-Id: a b",
    "Expect: 100-continue",
    "Authorization: Basic eDp5", "Authorization: Bearer jwt.of.another", "Authorization: Bearer <key>",
    "X-Api-Key: Basic aHZfbGl2ZV9ub3BlOg==",
    "X-Api-Key: <key>", "x-api-key: <key>", "X-Api-Key: hv_live_nope", "X-Api-Key:   <key>  ", "X-Api-Key: <other>",
    "Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: chat, <key>", "sec_websocket_protocol: <key>",
    "X-Key: forged", "x_key: forged", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "Origin: https://app.test", "Origin: https://evil.test", "Access-Control-Request-Method: GET",
    "X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 203.0.113.9, 10.0.0.2", "Forwarded: for=6.6.6.6",
    *[f"{name}: {value}" for name, value in (*HOP_BY_HOP, *FORWARDING, *STRIPPED[:4])],
]  # fmt: skip
HOSTILE = [line.removesuffix(b"\r\n").decode("latin-1") for line in BROKEN_LINES] + [
    line.decode("latin-1") for lines in AMBIGUOUS[:9] for line in lines
]
EVENTS = ["revoke", "disable", "enable", "a minute", "an hour", "expiry", "the store comes or goes"]


def raw_of(method: str, target: str, lines: Sequence[str], body: str) -> bytes:
    framing = [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, *framing, "", body]).encode("latin-1")


USUAL = st.builds(
    raw_of,
    st.sampled_from(["GET", "POST"]),
    st.sampled_from(TARGETS[:17]),
    st.lists(st.sampled_from(LINES[4:14]), max_size=3, unique=True).map(
        lambda lines: ["Host: api.test", "Authorization: Bearer <key>", *lines]
    ),
    st.sampled_from(["", "", "body"]),
)
ODD = st.builds(
    raw_of,
    st.sampled_from(METHODS),
    st.sampled_from(TARGETS),
    st.lists(st.sampled_from([*LINES, *HOSTILE]), max_size=6),
    st.sampled_from(["", "body"]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.one_of(USUAL, USUAL, ODD), st.sampled_from([PEER, PEER, PROXY]), st.sampled_from([1, 3])),
        st.sampled_from(EVENTS),
    ),
    max_size=12,
)
ALWAYS = HeadLimits()


class WaitingLimiter(MemoryLimiter):
    """One that has to be waited for, as those are that ask another process."""

    immediate = False

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        await asyncio.sleep(0)
        return MemoryLimiter.take_now(self, buckets, now)

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        await asyncio.sleep(0)
        return MemoryLimiter.peek_now(self, buckets, now)


class BusyLimiter(WaitingLimiter):
    """One that never waits, but for the moment in which another process holds what it needs."""

    immediate = True

    def take_now(self, buckets: Sequence[Bucket], now: float) -> None:  # type: ignore[override]
        """It is that moment."""

    peek_now = take_now  # type: ignore[assignment]


class Ways:
    """Two gates over one store: one is asked the longer way only, the other the shorter one where it can be.

    waits: the limiter of the other has to be waited for.
    """

    def __init__(self, world: World, key: str, other: str, record: ApiKey, *, waits: bool = False) -> None:
        self.world, self.key, self.other, self.record = world, key, other, record
        self.longer, self.shorter = (
            _gate(world, MemoryLimiter()),
            _gate(world, (MemoryLimiter, WaitingLimiter)[waits]()),
        )
        self.known = KnownRequests(self.shorter)
        self.taken = 0
        """Requests that took the shorter path."""

    def written(self, raw: bytes) -> bytes:
        return raw.replace(b"<key>", self.key.encode()).replace(b"<other>", self.other.encode())

    async def both(self, raw: bytes, peer: str) -> tuple[object, object]:
        return await self._longer(self.longer, raw, peer), await self._shorter(raw, peer)

    async def _longer(self, gate: Gate, raw: bytes, peer: str) -> object:
        head, _, _ = raw.partition(b"\r\n\r\n")
        try:
            message = read_head(head + b"\r\n\r\n", ALWAYS)
        except MalformedHead as malformed:
            return malformed.reason
        if message.target == "*":
            return Reason.METHOD_NOT_ALLOWED
        request = RequestHead(
            method=message.method,
            target=message.target,
            headers=message.headers,
            peer=peer,
            version=message.version,
        )
        return (gate.preflight(request) or await gate.decide(request), message.framing)

    async def _shorter(self, raw: bytes, peer: str) -> object:
        known = read(self.known, raw, peer)
        decision = None if known is None else self.shorter.decide_now(known.head, known.understood)
        if known is not None and decision is None:
            later = self.shorter.decide_later(known.head, known.understood)
            decision = None if later is None else await later()
        if known is None or decision is None:
            return await self._longer(self.shorter, raw, peer)
        self.taken += 1
        return (decision, known.framing)

    async def happen(self, event: str) -> None:
        await self.world.grace.check()
        keys, clock = self.world.store.keys, self.world.clock
        statuses = {"revoke": KeyStatus.REVOKED, "disable": KeyStatus.DISABLED, "enable": KeyStatus.ACTIVE}
        if event in statuses:
            with suppress(StoreUnavailable):
                await keys.change(
                    self.record.id,
                    lambda key: replace(key, status=statuses[event]),
                    action=event,
                    at=clock.micros(),
                    actor=ANN,
                )
        elif event == "the store comes or goes":
            self.world.move_store()
        else:
            clock.now += {"a minute": 61, "an hour": 3601, "expiry": 86_400 * 40}[event]


def read(known: KnownRequests, raw: bytes, peer: str = PEER) -> KnownRequest | None:
    return known.read(raw, peer, "http", most_lines=128, most_bytes=1000) if b"\r\n\r\n" in raw else None


def _gate(world: World, limiter: MemoryLimiter) -> Gate:
    return Gate(
        world.gate.config,
        KeyCache(world.store.keys, size=100, grace=world.grace),
        limiter,
        hasher=world.hasher,
        clock=world.clock,
        new_request_id=lambda: "made",
        failures=MemoryLimiter(),
    )


async def ways_of(world: World, *, waits: bool = False) -> Ways:
    expires_at = world.clock.micros() + 30 * 86_400 * 1_000_000
    key, record = await world.issue("read", "write", tenant="acme", expires_at=expires_at)
    other, _ = await world.issue("read")
    return Ways(world, key, other, record, waits=waits)


@settings(max_examples=60, deadline=None)
@given(config=st.sampled_from(CONFIGS), steps=STEPS, waits=st.booleans())
def test_both_paths_decide_alike_whatever_is_sent(config: str, steps: list[Any], waits: bool) -> None:
    async def compare() -> None:
        with TemporaryDirectory() as folder:
            world = await make_world(Path(folder), config, grace=30)
            try:
                ways = await ways_of(world, waits=waits)
                for step in steps:
                    if isinstance(step, str):
                        await ways.happen(step)
                        continue
                    raw, peer = ways.written(step[0]), step[1]
                    for _ in range(step[2]):  # The second time, its lines are known, and then all together.
                        longer, shorter = await ways.both(raw, peer)
                        assert shorter == longer, raw
            finally:
                await world.store.close()

    asyncio.run(compare())


@pytest.fixture
async def ways(tmp_path: Path) -> AsyncIterator[Ways]:
    world = await make_world(tmp_path, TRUSTING)
    yield await ways_of(world)
    await world.store.close()


USUAL_KINDS = {
    "a GET": ["GET /items/7 HTTP/1.1", "Host: api.test", "Authorization: Bearer <key>"],
    "a query": ["GET /items/7?a=b&c=%20d HTTP/1.1", "Host: api.test", "X-Api-Key: <key>"],
    "several quotas": ["GET /counted/x HTTP/1.1", "Host: api.test", "X-Api-Key: <key>"],
    "a tenant's route": ["GET /o/acme/e/live/x HTTP/1.1", "Host: api.test", "X-Api-Key: <key>"],
    "a public route": ["GET /public/x HTTP/1.1", "Host: api.test"],
    "a request id": ["GET /items/7 HTTP/1.1", "Host: api.test", "X-Api-Key: <key>", "X-Request-Id: abc"],
    "a trace": [
        "GET /items/7 HTTP/1.1", "Host: api.test", "X-Api-Key: <key>",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ],
    "a kept connection": ["GET /items/7 HTTP/1.1", "Host: api.test", "X-Api-Key: <key>", "Connection: keep-alive"],
    "an escape in a header": ["GET /items/7 HTTP/1.1", "Host: a", "X-Api-Key: <key>", "Referer: https://a.test/%20"],
    "forged forwarding": ["GET /items/7 HTTP/1.1", "Host: a", "X-Api-Key: <key>", "X-Forwarded-For: 6.6.6.6"],
    "no route": ["GET /nowhere HTTP/1.1", "Host: api.test", "X-Api-Key: <key>"],
    "no key": ["GET /items/7 HTTP/1.1", "Host: api.test"],
    "a mistyped key": ["GET /items/7 HTTP/1.1", "Host: api.test", "X-Api-Key: hv_live_nope"],
}  # fmt: skip


@pytest.mark.parametrize("lines", USUAL_KINDS.values(), ids=USUAL_KINDS)
async def test_usual_requests_take_the_shorter_path(ways: Ways, lines: list[str]) -> None:
    raw = ways.written("\r\n".join([*lines, "", ""]).encode())
    for _ in range(4):  # The key itself is read from the store, then lines are learnt, then all of them together.
        longer, shorter = await ways.both(raw, PEER)
        assert shorter == longer
    assert ways.taken > 0


async def test_requests_with_quotas_take_the_shorter_path_even_if_the_limiter_must_be_awaited(
    tmp_path: Path,
) -> None:
    world = await make_world(tmp_path, TRUSTING)
    ways = await ways_of(world, waits=True)
    raw = ways.written(b"GET /counted/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: <key>\r\n\r\n")
    found = [await ways.both(raw, PEER) for _ in range(5)]
    assert all(longer == shorter for longer, shorter in found)
    assert isinstance(found[0][1][0], Allow) and isinstance(found[4][1][0], Deny)  # type: ignore[index]
    assert ways.taken == 4  # All but the first, whose key is not in memory.
    for target in ("/items/7", "/named/x", "/o/other/e/live/x"):  # Refused to a good key, on routes without quotas.
        raw = ways.written(b"POST %b HTTP/1.1\r\nHost: a\r\nX-Api-Key: <other>\r\n\r\n" % target.encode())
        assert [longer == shorter for longer, shorter in [await ways.both(raw, PEER) for _ in range(3)]] == [True] * 3
    await world.store.close()


@pytest.mark.parametrize(
    "line",
    [
        "Host: api.test",
        "User-Agent: a",
        "Content-Type: a/b",
        "X-Api-Key: <key>",
        "X-Request-Id: a",
        "Content-Length: 4",
    ],
)
async def test_a_repeated_single_line_takes_the_longer_path(ways: Ways, line: str) -> None:
    once = {"Host: api.test", "X-Api-Key: <key>", line}
    for lines in (sorted(once), [*sorted(once), line]):
        raw = ways.written(raw_of("POST", "/items/7", [each for each in lines if "Length" not in each], "body"))
        if lines.count(line) == 2 and "Length" in line:
            raw = raw.replace(b"Content-Length: 4", b"Content-Length: 4\r\nContent-Length: 4")
        longer, shorter = await ways.both(raw, PEER)
        assert shorter == longer
        assert (read(ways.known, raw) is None) == (lines.count(line) == 2)


async def test_a_small_body_that_arrives_with_its_head_takes_the_shorter_path(ways: Ways) -> None:
    raw = ways.written(raw_of("POST", "/items/7", ["Host: a", "X-Api-Key: <key>", "Content-Type: text/plain"], "body"))
    known = read(ways.known, raw)
    assert known is not None
    assert (known.body, known.framing) == (b"body", b"Content-Length: 4\r\n")
    assert read(ways.known, raw[:-1]) is None
    assert read(ways.known, raw + b"G") is None


async def test_a_trusted_proxys_forwarding_fields_are_kept_on_the_shorter_path_too(ways: Ways) -> None:
    raw = ways.written(b"GET /items/7 HTTP/1.1\r\nHost: a\r\nX-Api-Key: <key>\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n")
    await ways.both(raw, PROXY)
    longer, shorter = await ways.both(raw, PROXY)
    assert (shorter, ways.taken) == (longer, 1)
    allow = shorter[0]  # type: ignore[index]
    assert isinstance(allow, Allow)
    assert allow.client_address == "203.0.113.9"


async def test_a_copy_of_the_key_is_found_among_lines_that_are_known(ways: Ways) -> None:
    clean = ["Host: api.test", "X-Api-Key: <key>", "X-Note: words"]
    for _ in range(4):
        await ways.both(ways.written(raw_of("GET", "/items/7", clean, "")), PEER)
    for target in ("/items/<key>", "/items/7?a=<key>", "/items/7?a=%68v_live", "/items/7?<key>"):
        longer, shorter = await ways.both(ways.written(raw_of("GET", target, clean, "")), PEER)
        assert shorter == longer, target
    for door in ("X-Note: <key>", "X-Note: %68v_live", "X-Note: Basic <key>", "Cookie: a=<key>"):
        raw = ways.written(raw_of("GET", "/items/7", [*clean[:2], door], ""))
        longer, shorter = await ways.both(raw, PEER)
        assert shorter == longer, door


@pytest.mark.parametrize(
    "lines",
    [
        ["X-Api-Key: <key>", "Authorization: Bearer <key>"],
        ["X-Api-Key: <key>", "Authorization: Bearer <other>"],
        ["X-Api-Key: <key>", "X-Api-Key: <other>"],
        ["X-Api-Key: <key>", " folded: 1"],
        ["X-Api-Key: <key> "],
        ["X-Api-Key:<key>"],
        ["X-Api-Key: <key>\n"],
        ["X-Api-Key: <key>\nX-B: 1"],
        ["X-Api-Key: <key> <other>"],
        ["X-Api-Key : <key>"],
        ["x-API-key: <key>"],
        ["Authorization: bEARER <key>"],
        ["Authorization: Bearer  <key>"],
        ["Authorization: Token <key>"],
        ["Authorization: <key>"],
        ["X-Not-X-Api-Key: <key>"],
    ],
)
async def test_text_around_a_key_is_judged_alike(ways: Ways, lines: list[str]) -> None:
    known = ["Host: a", "Accept: */*"]
    for _ in range(4):
        await ways.both(ways.written(raw_of("GET", "/items/7", [*known, "X-Api-Key: <key>"], "")), PEER)
    for order in ([*lines, *known], [*known, *lines], [known[0], *lines, known[1]]):
        for _ in range(3):
            raw = ways.written(raw_of("GET", "/items/7", order, ""))
            longer, shorter = await ways.both(raw, PEER)
            assert shorter == longer, raw


async def test_keys_used_once_leave_nothing_and_take_the_shorter_path(ways: Ways) -> None:
    raws = [
        raw_of("GET", "/items/7", ["Host: a", f"X-Api-Key: hv_live_{number:043d}", "Accept: */*"], "")
        for number in range(300)
    ]
    for raw in raws[:3]:
        assert read(ways.known, raw) is not None
    held = len(ways.known)
    for raw in raws:
        assert read(ways.known, raw) is not None
    assert len(ways.known) == held


def reachable(root: object) -> list[object]:
    """All that `root` holds, but not the code, which holds whatever the tests do."""
    found: dict[int, object] = {}
    waiting = [root]
    while waiting:
        each = waiting.pop()
        if id(each) not in found and not isinstance(each, (type, FunctionType, ModuleType)):
            found[id(each)] = each
            waiting += gc.get_referents(each)
    return list(found.values())


@pytest.mark.requirement("S4.6")
async def test_nothing_of_a_key_stays_in_memory(ways: Ways) -> None:
    hidden = "".join(f"%{ord(letter):02x}" for letter in ways.key)
    doors = [
        "Authorization: Bearer <key>", "X-Api-Key: <key>", "Cookie: a=<key>", "X-Note: <key>", f"X-Note: {hidden}",
        "Proxy-Authorization: Basic <key>", "Referer: https://a.test/?<key>",
        "<key>: 1",
    ]  # fmt: skip
    for door in doors:
        for target in ("/items/7", "/items/<key>", "/items/7?a=<key>", f"/items/7?a={hidden}"):
            for _ in range(3):
                read(ways.known, ways.written(raw_of("GET", target, ["Host: api.test", door], "")))
    kept = [each for each in reachable(ways.known) if isinstance(each, (bytes, str))]
    assert any(each == b"Host: api.test" for each in kept)
    secret = ways.key.removeprefix("hv_live_")
    assert [each for each in kept if (secret if isinstance(each, str) else secret.encode()) in each] == []
    assert [each for each in kept if (hidden if isinstance(each, str) else hidden.encode()) in each] == []


def test_a_flood_of_entries_that_come_once_pushes_out_no_other() -> None:
    memory: Memory[str] = Memory(100)
    for number in range(10_000):
        if not (memory.young.get(b"good") or memory.recall(b"good")):
            assert number == 0
            memory.learn(b"good", "good")
        memory.learn(b"once %d" % number, "once")
    assert len(memory) <= 200


async def test_lines_that_come_once_are_bounded(ways: Ways) -> None:
    for number in range(20_000):
        raw = b"GET /items/%d HTTP/1.1\r\nHost: a\r\nX-Once: %d\r\n\r\n" % (number, number)
        assert read(ways.known, raw) is not None
    assert len(ways.known) <= 2 * 2 * 2048


async def test_header_lines_of_many_clients_are_bounded(ways: Ways) -> None:
    for number in range(64 * 64):
        lines = f"Host: a\r\nX-One: {number % 64}\r\nX-Two: {number // 64}\r\n"
        assert read(ways.known, f"GET /items HTTP/1.1\r\n{lines}\r\n".encode()) is not None
    assert 64 * 64 // 8 < len(ways.known) <= 2 * 512 + 200


async def test_a_preflight_takes_the_longer_path(tmp_path: Path) -> None:
    world = await make_world(tmp_path, SHARED)
    asked = ["Host: api.test", "Origin: https://app.test", "Access-Control-Request-Method: GET"]
    try:
        ways = await ways_of(world)
        for method, target in (("OPTIONS", "/items/7"), ("OPTIONS", "/o/acme/e/live/x"), ("GET", "/items/7")):
            longer, shorter = await ways.both(raw_of(method, target, asked, ""), PEER)
            assert shorter == longer
            assert isinstance(shorter[0], Allow) == (method == "OPTIONS")  # type: ignore[index]
    finally:
        await world.store.close()


@pytest.mark.parametrize("target", ["/items/7", "/me?a=b", "http://api.test/me"])
async def test_the_methods_of_a_path_are_reported_on_both_paths(tmp_path: Path, target: str) -> None:
    world = await make_world(tmp_path, TRUSTING + "unmatched: {method_not_allowed: true}\n")
    try:
        ways = await ways_of(world)
        raw = ways.written(raw_of("PUT", target, ["Host: api.test", "X-Api-Key: <key>"], ""))
        for _ in range(4):
            longer, shorter = await ways.both(raw, PEER)
            assert shorter == longer
            assert shorter[0].methods[:2] == ("GET", "HEAD")  # type: ignore[index]
        assert ways.taken > 0 or "//" in target
    finally:
        await world.store.close()


async def test_a_revoked_key_is_refused_on_the_next_request(ways: Ways) -> None:
    raw = ways.written(raw_of("GET", "/items/7", ["Host: a", "X-Api-Key: <key>"], ""))
    for _ in range(2):
        await ways.both(raw, PEER)
    assert ways.taken == 1
    await ways.happen("revoke")
    await asyncio.sleep(0)
    await ways.both(raw, PEER)  # Reads the key again.
    longer, shorter = await ways.both(raw, PEER)
    assert shorter == longer
    deny = shorter[0]  # type: ignore[index]
    assert isinstance(deny, Deny)
    assert deny.reason in (Reason.REVOKED_KEY, Reason.TOO_MANY_FAILURES)


async def test_both_paths_refuse_an_address_with_too_many_failures_alike(ways: Ways) -> None:
    chance = random.Random(9)  # noqa: S311 - nothing is protected by it
    for _ in range(320):
        line = f"X-Api-Key: {KeyFormat().make('hv_live_', chance.randrange)}"
        longer, shorter = await ways.both(raw_of("GET", "/items/7", ["Host: a", line], ""), PEER)
        assert shorter == longer
    assert ways.taken == 17  # 3 failures and 300 lookups go the longer way.
    good = ways.written(raw_of("GET", "/items/7", ["Host: a", "X-Api-Key: <key>"], ""))
    for allowed in (False, True):
        longer, shorter = await ways.both(good, PEER)
        assert shorter == longer
        assert isinstance(shorter[0], Allow) is allowed  # type: ignore[index]
        ways.world.clock.now += 0.1


async def test_both_paths_report_the_same_wait_whatever_the_clock_does(ways: Ways) -> None:
    line, waits = f"X-Api-Key: {KeyFormat().make('hv_live_', random.Random(9).randrange)[:-1]}_", set()  # noqa: S311
    raw = raw_of("GET", "/items/7", ["Host: a", line], "")
    for step in (0, 0, 0, 0, 0, 0.25, 0.5, 0.5, 1, -0.5, -4, -0.25, 5, 20, 30, 60, 0, 0, 0, 0, 1, -90, 0, 200):
        ways.world.clock.now += step
        longer, shorter = await ways.both(raw, PEER)
        assert shorter == longer
        deny = shorter[0]  # type: ignore[index]
        waits.add(deny.refused_quota and deny.refused_quota.retry_after_seconds)
    assert ways.taken == 24
    assert len(waits) > 6


RESPONSE_LINES = [
    b"Content-Length: 2", b"Content-Length: 2", b"content-length: 02", b"Content-Length: 3", b"Content-Length: 2, 2",
    b"Content-Type: application/json", b"Date: Thu, 01 Jan 1970 00:00:00 GMT", b"Set-Cookie: session=1",
    b"Set-Cookie: other=2", b"Connection: keep-alive", b"Connection: close", b"Connection: X-A",
    b"Keep-Alive: timeout=5",
    b"Transfer-Encoding: chunked", b"Upgrade: h2c", b"TE: trailers", b"X-A:1", b"X-A:  1\t", b"X-A: \xe9", b"X-A: \x00",
    b"X-A : 1", b" X-A: 1", b"X A: 1", b": 1", b"X-A", b"X-A: 1\r", b"Trailer: X-A", b"Proxy-Connection: keep-alive",
]  # fmt: skip
STATUS_LINES = [
    b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Not Found", b"HTTP/1.1 500 ", b"HTTP/1.1 500",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 100 Continue", b"HTTP/1.1 101 Switching",
    b"HTTP/1.1 99 Low", b"HTTP/1.1 600 High", b"HTTP/1.2 200 OK", b"HTTP/1.1  200 OK", b"http/1.1 200 OK",
    b"HTTP/1.1 2x0 OK",
]  # fmt: skip
RESPONSES = st.builds(
    lambda first, lines, body: b"\r\n".join([first, *lines, b"", body]),
    st.sampled_from(STATUS_LINES),
    st.lists(st.sampled_from(RESPONSE_LINES), max_size=4).map(lambda lines: [RESPONSE_LINES[0], *lines]),
    st.sampled_from([b"ok", b"ok", b"o", b"okay", b""]),
)


@settings(max_examples=500, deadline=None)
@given(raw=RESPONSES, learnt=st.lists(RESPONSES, max_size=2))
def test_a_response_that_is_known_is_what_the_parser_reads(raw: bytes, learnt: list[bytes]) -> None:
    loop = asyncio.new_event_loop()
    try:
        known = KnownResponses(loop)
        for each in (*learnt, *learnt, raw, raw, raw):
            found = known.read(each)
        if found is None:
            return
        parser = ResponseParser(loop)
        parser.expect("GET")
        parser.feed(raw)
    finally:
        loop.close()
    read_by_parser = parser.response
    assert read_by_parser is not None
    assert (parser.complete, parser.keep_alive, parser.excess_data, parser.unexpected_body) == (
        True,
        True,
        False,
        False,
    )
    for name in ("status", "reason", "headers", "chunked", "has_length", "complete", "version"):
        assert getattr(found, name) == getattr(read_by_parser, name), name
    assert found.take() == read_by_parser.take()


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok",
        b"HTTP/1.1 404 Not Found\r\nServer: x\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_complete_response_with_a_length_is_known(raw: bytes) -> None:
    loop = asyncio.new_event_loop()
    try:
        assert KnownResponses(loop).read(raw) is not None
    finally:
        loop.close()


def test_no_secret_of_a_response_stays_in_memory() -> None:
    loop = asyncio.new_event_loop()
    try:
        known = KnownResponses(loop)
        for _ in range(3):
            known.read(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: s=s3cret\r\nX-Token: s3cret\r\n\r\nok")
    finally:
        loop.close()
    assert not any(isinstance(each, bytes) and b"s3cret" in each for each in reachable(known))


async def test_a_request_takes_the_longer_path_once_while_another_process_locks_the_counts(
    ways: Ways,
) -> None:
    ways.shorter = _gate(ways.world, BusyLimiter())
    ways.known = KnownRequests(ways.shorter)
    raw = ways.written(b"GET /counted/x HTTP/1.1\r\nHost: api.test\r\nX-Api-Key: <key>\r\n\r\n")
    for _ in range(4):
        longer, shorter = await ways.both(raw, PEER)
        assert shorter == longer
    assert ways.taken == 0
