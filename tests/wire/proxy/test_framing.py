"""Where a message ends, both ways."""

import pytest

from sidecar.core.errors import Reason
from tests.harness.framing import AMBIGUOUS, name_of
from tests.harness.headers import FRAMING_DISGUISES
from tests.harness.waiting import eventually
from tests.upstreams.scripted import Peer, answering, closing_after, plain
from tests.wire.proxy.conftest import SetUp
from tests.wire.proxy.wire import get, post

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"
CHUNKED += b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n"


async def test_a_chunked_response_is_rechunked_without_extensions_and_trailers(set_up: SetUp) -> None:
    bench = await set_up(answering(CHUNKED, plain(b"next")))
    client = await bench.client()
    first = await client.ask(get())
    assert (first.body, first.all(b"Transfer-Encoding")) == (b"abcde", [b"chunked"])
    second = await client.ask(get())
    assert (second.body, second.headers) == (b"next", [(b"Content-Length", b"4")])
    assert len(bench.upstream.peers) == 1


async def test_http_1_0_gets_a_chunked_response_delimited_by_close(set_up: SetUp) -> None:
    bench = await set_up(answering(CHUNKED))
    client = await bench.client()
    await client.send(get(version="1.0"))
    assert await client.rest() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde"


async def test_http_1_0_is_kept_alive_on_request(set_up: SetUp) -> None:
    bench = await set_up(answering(plain(b"a")))
    client = await bench.client()
    for _ in range(2):
        response = await client.ask(get("/x", b"Connection: keep-alive", version="1.0"))
        assert response.all(b"Connection") == [b"keep-alive"]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_response_delimited_by_close(set_up: SetUp, version: bytes) -> None:
    bench = await set_up(closing_after(b"HTTP/" + version + b" 200 OK\r\nX-A: 1\r\n\r\nall of it"))
    client = await bench.client()
    await client.send(get())
    assert await client.rest() == b"HTTP/1.1 200 OK\r\nX-A: 1\r\nConnection: close\r\n\r\nall of it"
    assert bench.records.finished_ones[0].reason is None


@pytest.mark.requirement("S3.7")
async def test_head_keeps_content_length_and_the_connections(set_up: SetUp) -> None:
    """The next request waits as long as a careless upstream could still send a body."""
    head_only = b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"
    bench = await set_up(answering(head_only, plain(b"after")), max_connections=1)
    client = await bench.client()
    head = await client.ask(get(method="HEAD"))
    assert head.headers == [(b"Content-Length", b"1234")]
    assert (await client.ask(get())).body == b"after"
    assert len(bench.upstream.peers) == 1


async def test_a_body_after_a_response_to_head_closes_the_connection(set_up: SetUp) -> None:
    bench = await set_up(answering(plain(b"unasked"), plain(b"after")))
    client = await bench.client()
    assert (await client.ask(get(method="HEAD"))).status == 200
    response = await client.ask(get())
    assert response.status == 200
    assert len(bench.upstream.peers) == 2


@pytest.mark.requirement("S3.7")
@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_responses_without_a_body(set_up: SetUp, status: bytes) -> None:
    bench = await set_up(answering(b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n", plain(b"after")))
    client = await bench.client()
    first = await client.ask(get())
    assert (first.status_line, first.headers) == (b"HTTP/1.1 " + status, [(b"ETag", b"x")])
    assert (await client.ask(get())).body == b"after"
    assert len(bench.upstream.peers) == 1


async def test_a_304_may_have_the_length_of_the_body_that_it_omits(set_up: SetUp) -> None:
    told = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"
    bench = await set_up(answering(told, plain(b"after")), max_connections=1)
    client = await bench.client()
    assert (await client.ask(get())).all(b"Content-Length") == [b"99"]
    assert (await client.ask(get())).body == b"after"


@pytest.mark.requirement("S3.7")
async def test_pipelined_requests_are_answered_in_order(set_up: SetUp) -> None:
    async def echo(peer: Peer) -> None:
        while True:
            await peer.send(plain((await peer.request()).split(b" ")[1]))

    bench = await set_up(echo)
    client = await bench.client()
    await client.send(b"".join(get(f"/{number}") + post(b"b", target=f"/p{number}") for number in range(40)))
    for number in range(40):
        assert (await client.receive()).body == b"/%d" % number
        assert (await client.receive()).body == b"/p%d" % number


async def test_a_client_that_sends_connection_close_gets_it_back_and_is_closed(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    client = await bench.client()
    await client.send(get("/x", b"Connection: close"))
    assert b"\r\nConnection: close\r\n" in await client.rest()


@pytest.mark.requirement("S3.1")
@pytest.mark.parametrize("fields", AMBIGUOUS, ids=name_of)
async def test_ambiguous_framing_is_refused(set_up: SetUp, fields: tuple[bytes, ...]) -> None:
    bench = await set_up(answering(plain()))
    client = await bench.client()
    await client.send(get("/x", *fields, method="POST") + b"0\r\n\r\n" + get("/smuggled"))
    response = await client.rest()
    assert response.startswith(b"HTTP/1.1 400 ")
    assert response.count(b"HTTP/1.1") == 1
    assert b"\r\nConnection: close\r\n" in response
    assert bench.upstream.peers == []
    assert bench.records.malformed_ones == [(400, Reason.BAD_REQUEST)]


@pytest.mark.requirement("S3.1")
@pytest.mark.parametrize("name", [name for name in FRAMING_DISGUISES if "_" in name])
async def test_names_that_pass_for_framing_are_refused(set_up: SetUp, name: str) -> None:
    bench = await set_up(answering(plain()))
    assert (await bench.ask(get("/x", name.encode() + b": 0"))).status == 400
    assert bench.upstream.peers == []


@pytest.mark.requirement("S3.1")
async def test_chunked_in_http_1_0_is_refused(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    response = await bench.ask(get("/x", b"Transfer-Encoding: chunked", method="POST", version="1.0") + b"0\r\n\r\n")
    assert response.status == 400
    assert bench.upstream.peers == []


@pytest.mark.requirement("S3.2")
async def test_a_broken_chunk_breaks_the_request(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.until(b"abc\r\n")
        await peer.until(b"\r\n\r\n")

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get("/x", b"Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n")
    await eventually(lambda: b"abc\r\n" in b"".join(bench.upstream.seen))
    await client.send(b"3\nabc\r\n0\r\n\r\n" + get("/smuggled"))
    response = await client.rest()
    assert response.startswith(b"HTTP/1.1 400 ")
    assert response.count(b"HTTP/1.1") == 1
    await bench.upstream.peers[0].gone()
    assert bench.upstream.seen[0].endswith(b"3\r\nabc\r\n")
    assert [record.reason for record in bench.records.finished_ones] == [Reason.BAD_REQUEST]


@pytest.mark.requirement("S3.3")
async def test_nothing_runs_after_a_bad_request(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    client = await bench.client()
    await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\nBad Name: 1\r\n\r\n" + get("/good"))
    response = await client.rest()
    assert response.count(b"HTTP/1.1") == 1
    assert response.startswith(b"HTTP/1.1 400 ")
    assert bench.upstream.peers == []


@pytest.mark.requirement("S3.4")
async def test_a_waiting_client_gets_100_continue(set_up: SetUp) -> None:
    bench = await set_up(answering(plain(b"done")))
    client = await bench.client()
    await client.send(get("/x", b"Content-Length: 3", b"Expect: 100-continue", method="POST"))
    assert (await client.receive()).status_line == b"HTTP/1.1 100 Continue"
    await client.send(b"abc")
    assert (await client.receive()).body == b"done"
    assert b"expect" not in bench.upstream.seen[0].lower()


@pytest.mark.requirement("S3.4")
async def test_no_interim_response_for_http_1_0(set_up: SetUp) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    bench = await set_up(answering(early + plain(b"done")))
    client = await bench.client()
    await client.send(get("/x", b"Content-Length: 3", b"Expect: 100-continue", method="POST", version="1.0"))
    await client.send(b"abc")
    response = await client.rest()
    assert response.startswith(b"HTTP/1.1 200 OK")


async def test_a_refused_waiting_client_gets_no_100_continue(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    client = await bench.client()
    await client.send(get("/denied", b"Content-Length: 3", b"Expect: 100-continue", method="POST"))
    response = await client.rest()
    assert response.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in response


async def test_interim_responses_are_passed_on(set_up: SetUp) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nKeep-Alive: 1\r\n\r\n"
    bench = await set_up(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + early + plain(b"done")))
    client = await bench.client()
    first = await client.ask(get())
    assert (first.status, first.headers) == (103, [(b"Link", b"</a.css>")])
    assert (await client.receive()).body == b"done"


async def test_a_204_loses_its_length_and_a_304_keeps_it_as_a_number(set_up: SetUp) -> None:
    bench = await set_up(
        answering(
            b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 002\r\n\r\nok",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 0200\r\n\r\n",
        )
    )
    client = await bench.client()
    assert [(await client.ask(get())).all(b"Content-Length") for _ in range(3)] == [[], [b"2"], [b"200"]]


async def test_a_request_may_arrive_in_two_parts_cut_anywhere(set_up: SetUp) -> None:
    request = get("/x", b"X-A: 1")
    bench = await set_up(answering(*[plain() for _ in request]))
    client = await bench.client()
    for cut in range(1, len(request)):
        await client.send(request[:cut])
        await eventually(lambda: any(connection.receives_head for connection in bench.server._connections))
        assert (await client.ask(request[cut:])).status == 200
