"""Via lists a message's hops, and stops a message that returns (RFC 9110 section 7.6.3)."""

from pathlib import Path

import pytest

from sidecar.config.fields import Address
from sidecar.core.errors import Reason
from tests.harness.waiting import eventually
from tests.upstreams.scripted import answering, closing_after, plain
from tests.wire.proxy.conftest import SetUp
from tests.wire.proxy.wire import get

HERE = "edge-1"


async def test_via_passes_unchanged_by_default(set_up: SetUp) -> None:
    bench = await set_up(answering(plain(b"x", b"Via: 1.1 inner")))
    response = await bench.ask(get("/", b"Via: 1.0 outer"))
    assert bench.upstream.seen[0].count(b"Via: 1.0 outer\r\n") == bench.upstream.seen[0].lower().count(b"via") == 1
    assert response.all(b"Via") == [b"1.1 inner"]


async def test_requests_and_responses_get_this_hop_at_the_end_of_their_way(set_up: SetUp) -> None:
    bench = await set_up(answering(plain(b"x", b"Via: 1.1 inner", b"via: 1.1 middle")), via=HERE)
    response = await bench.ask(get("/", b"Via: 1.0 outer (a, b), 1.1 edge-10", b"via: HTTP/2 edge"))
    assert b"\r\nVia: 1.0 outer (a, b), 1.1 edge-10, HTTP/2 edge, 1.1 edge-1\r\n" in bench.upstream.seen[0]
    assert bench.upstream.seen[0].lower().count(b"\r\nvia:") == 1
    assert response.all(b"Via") == [b"1.1 inner, 1.1 middle, 1.1 edge-1"]


async def test_without_a_previous_hop_via_has_only_this_one(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), via=HERE)
    client = await bench.client()
    response = await client.ask(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
    assert b"\r\nVia: 1.0 edge-1\r\n" in bench.upstream.seen[0]
    assert response.all(b"Via") == [b"1.1 edge-1"]


@pytest.mark.parametrize("fields", [b"", b"Connection: keep-alive\r\n"])
async def test_via_has_the_version_that_the_upstream_speaks(set_up: SetUp, fields: bytes) -> None:
    bench = await set_up(closing_after(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n" + fields + b"\r\nx"), via=HERE)
    response = await bench.ask(get())
    assert (response.body, response.all(b"Via")) == (b"x", [b"1.0 edge-1"])


@pytest.mark.parametrize("line", [b"Via: 1.1 edge-1", b"vIA: 1.1 a,1.0   EDGE-1 (again)", b"Via: 1.1 edge-1, 1.1 b"])
async def test_a_request_that_already_passed_this_sidecar_is_refused(set_up: SetUp, line: bytes) -> None:
    bench = await set_up(answering(plain()), via=HERE)
    response = await bench.ask(get("/", line))
    assert (response.status, response.body) == (508, b"loop_detected")
    assert bench.upstream.seen == []
    await eventually(lambda: [record.reason for record in bench.records.finished_ones] == [Reason.LOOP_DETECTED])


async def test_a_sidecar_before_itself_says_so_at_the_second_round(set_up: SetUp, tmp_path: Path) -> None:
    itself = Address(path=str(tmp_path / "data.sock"))
    bench = await set_up(answering(plain()), unix=True, address=itself, via=HERE)
    response = await bench.ask(get())
    assert (response.status, response.body) == (508, b"loop_detected")
    assert response.all(b"Via") == [b"1.1 edge-1"]
    await eventually(lambda: [record.status for record in bench.records.finished_ones] == [508, 508])
