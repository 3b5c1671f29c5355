"""A trailer never becomes a header, neither of its own request nor of the next one.

Chunked requests of the corpus, each with trailers of several names, stand before a clean request on one connection.
"""

import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.harness.ports import comes_to_listen, free_port
from tests.harness.recording import Recorded, Upstream
from tests.harness.running import StartSidecar
from tests.harness.tools import needed
from tests.harness.wire import Address, Connection, ConnectionClosed, Response
from tests.wire.admin.calls import CONFIG as ADMIN_CONFIG
from tests.wire.admin.calls import OPS, admin_address
from tests.wire.corpus.case import Case, load
from tests.wire.forward_auth.asking import DIALECTS, Decider, question, start_decider
from tests.wire.security.site import CONFIG as SITE_CONFIG
from tests.wire.security.site import Site, keys_of

WAIT_SECONDS = 0.3
"""Silence of this length counts as waiting for the rest of a body."""
HAPROXY = """\
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
frontend clients
  bind 127.0.0.1:{port}
  default_backend sidecars
backend sidecars
  http-reuse {reuse}
  server sidecar {host}:{sidecar} maxconn 1
"""
CLEAN = "/items/clean"
TRAILERS = (
    b"",
    b"X-Api-Key: <Ka>\r\n",
    b"Authorization: Bearer <Ka>\r\n",
    b"Cookie: session=<Ka>\r\n",
    b"Range: bytes=0-1\r\n",
    b"X-Auth-Subject: t-Ka\r\n",
    b"X-First: 1\r\nX-Second: 2\r\nX-Api-Key: <Ka>\r\n",
    b"X-Api-Key: <Ka>\r\nX-Last:\r\n",
)
REFUSED_TRAILERS = (b"Host: evil.test\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n")
"""llhttp refuses the two of framing, or drops them; whichever it does, the next request is its own."""
_REQUEST_ID = re.compile(rb"X-Request-Id: \w+\r\n", re.IGNORECASE)
CHUNKED = [
    case
    for case in load(Path(__file__).parents[1] / "corpus" / "requests")
    if re.search(rb"transfer-encoding:\s*chunked", case.raw, re.IGNORECASE)
]


@pytest.fixture(scope="module")
def site_of_module(start_shared_sidecar: StartSidecar, upstream_process: Upstream) -> Site:
    sidecar = start_shared_sidecar(SITE_CONFIG)
    return Site(sidecar=sidecar, upstream=upstream_process, keys=keys_of(sidecar))


@pytest.fixture
def site(site_of_module: Site, upstream: Upstream) -> Site:
    return site_of_module


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a client writes, piece by piece; the next piece follows when `answers` have arrived."""

    pieces: Sequence[bytes]
    answers: int = 1
    patience: float = 5
    """Seconds of silence that count as the end."""


def responses(address: Address, sent: Sent) -> list[Response]:
    """Every response until the server closes or waits for more."""
    answers: list[Response] = []
    with Connection(address) as connection, suppress(ConnectionClosed, TimeoutError, ConnectionError):
        connection.lose_patience(WAIT_SECONDS if len(sent.pieces) == 1 else sent.patience)
        for number, piece in enumerate(sent.pieces):
            connection.send(piece)
            if number + 1 < len(sent.pieces):
                answers += [connection.receive() for _ in range(sent.answers)]
        while True:
            answers.append(connection.receive())
    return answers


def chunked(target: str, trailer: bytes, *fields: bytes, host: bytes = b"api.test", body: bytes = b"abc") -> bytes:
    head = b"".join(b"%b\r\n" % field for field in (b"Host: " + host, *fields, b"Transfer-Encoding: chunked"))
    return b"POST %b HTTP/1.1\r\n%b\r\n%x\r\n%b\r\n0\r\n%b\r\n" % (target.encode(), head, len(body), body, trailer)


def clean(key: str = "", target: str = CLEAN) -> bytes:
    """A self-contained request; the server closes after its response."""
    credential = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"GET {target} HTTP/1.1\r\nHost: api.test\r\n{credential}X-Own: 1\r\nConnection: close\r\n\r\n"
    return head.encode()


def own_bytes(recorded: Recorded) -> bytes:
    return _REQUEST_ID.sub(b"", recorded.head)


def clean_ones(site: Site) -> Iterator[bytes]:
    for recorded in site.upstream.requests():
        if recorded.target == CLEAN:
            yield own_bytes(recorded)


@pytest.fixture
def alone(site: Site) -> bytes:
    """What reaches the upstream of the clean request on its own."""
    [answer] = responses(site.sidecar.data, Sent(pieces=[clean(site.keys["Kr"])]))
    assert answer.status == 200
    [head] = clean_ones(site)
    site.upstream.clear()
    return head


def with_key(trailer: bytes, site: Site) -> bytes:
    return trailer.replace(b"<Ka>", site.keys["Ka"].encode())


@pytest.mark.requirement("S3.8")
@pytest.mark.parametrize("target", ["/public/x", "/items/x"], ids=["allowed", "refused"])
@pytest.mark.parametrize("deep", [1, 3])
@pytest.mark.parametrize("trailer", TRAILERS, ids=lambda trailer: trailer.decode().split(":")[0])
@pytest.mark.parametrize("key", ["", "Kr"], ids=["no key", "Kr"])
def test_a_trailer_does_not_become_a_header_of_the_next_request(
    site: Site, alone: bytes, trailer: bytes, deep: int, target: str, key: str
) -> None:
    first = chunked(target, with_key(trailer, site)) * deep
    next_one = clean(site.keys[key] if key else "")
    before = [401 if target == "/items/x" else 200] * deep
    for sent in (Sent(pieces=[first + next_one]), Sent(pieces=[first, next_one], answers=deep)):
        answers = responses(site.sidecar.data, sent)
        assert [answer.status for answer in answers] == [*before, 200 if key else 401]
        assert list(clean_ones(site)) == ([alone] if key else [])
        site.upstream.clear()


@pytest.mark.requirement("S3.8")
@pytest.mark.parametrize("target", ["/public/x", "/items/x"], ids=["allowed", "refused"])
@pytest.mark.parametrize("trailer", REFUSED_TRAILERS, ids=lambda trailer: trailer.decode().split(":")[0])
@pytest.mark.parametrize("key", ["", "Kr"], ids=["no key", "Kr"])
def test_a_refusable_trailer_does_not_become_a_header_of_the_next_request(
    site: Site, alone: bytes, trailer: bytes, target: str, key: str
) -> None:
    next_one = clean(site.keys[key] if key else "")
    answers = responses(site.sidecar.data, Sent(pieces=[chunked(target, trailer) + next_one]))
    heads = list(clean_ones(site))
    assert heads in ([], [alone] if key else [])
    assert [answer.status for answer in answers[1:]] in ([], [200 if heads else 401])


@pytest.mark.requirement("S3.8")
@pytest.mark.parametrize("case", CHUNKED, ids=lambda case: case.name)
def test_no_chunked_request_of_the_corpus_changes_the_one_after_it(site: Site, alone: bytes, case: Case) -> None:
    for before in chunked_ones(case, site):
        for key in ("", site.keys["Kr"]):
            for sent in followed_by(clean(key), before):
                answers = responses(site.sidecar.data, sent)
                heads = list(clean_ones(site))
                smuggled = [seen for seen in site.upstream.requests() if "smuggled" in seen.target]
                site.upstream.clear()
                assert heads in ([], [alone] if key else [])
                assert smuggled == [] and 500 not in [answer.status for answer in answers]


def chunked_ones(case: Case, site: Site) -> Iterator[bytes]:
    """Without and with trailers; allowed and refused requests."""
    raw = case.sent(site.keys)
    for trailer in TRAILERS[:3]:
        ended = raw.replace(b"\r\n0\r\n\r\n", b"\r\n0\r\n%b\r\n" % with_key(trailer, site))
        yield from dict.fromkeys((ended, ended.replace(b"/public/", b"/items/")))


def followed_by(clean: bytes, before: bytes) -> Iterator[Sent]:
    """In the same write, in a second one, and three deep."""
    writes = ([before + clean], [before, clean], [before * 3 + clean])
    return (Sent(pieces=pieces, answers=0, patience=WAIT_SECONDS) for pieces in writes)


@pytest.mark.requirement("S3.8")
@pytest.mark.parametrize("listener", ["admin", "forward auth", "ops"])
@pytest.mark.parametrize("way", range(3), ids=["in the same write", "in a second write", "three deep"])
def test_no_chunked_request_of_the_corpus_opens_anything_on_the_other_listeners(
    site: Site, admin: Address, decider: Decider, listener: str, way: int
) -> None:
    """Each case is followed by a request that its trailer would open, were it a header."""
    address, secret, target, next_one = {
        "admin": (admin, OPS.encode(), b"/api/v1/keys", clean(target="/api/v1/keys")),
        "forward auth": (decider.address, decider.keys["Ka"].text.encode(), b"/nginx", question("nginx", "GET", "/x")),
        "ops": (site.sidecar.ops, b"any", b"/livez", clean(target="/metrics")),
    }[listener]
    trailer = b"\r\n0\r\nAuthorization: Bearer %b\r\n\r\n" % secret
    firsts = [case.sent(site.keys).replace(b"\r\n0\r\n\r\n", trailer).replace(b"/public/x", target) for case in CHUNKED]
    sent = [list(followed_by(next_one, first))[way].pieces for first in firsts]
    statuses = statuses_of_all(address, [[piece.replace(b"api.test", b"localhost") for piece in one] for one in sent])
    opened = 200 if listener == "ops" else 0
    assert all(found in ([], [opened]) or (len(found) == 1 and found[0] >= 400) for found in statuses)
    assert sum(map(len, statuses)) > len(CHUNKED) / 2


def statuses_of_all(address: Address, sent: Sequence[Sequence[bytes]]) -> list[list[int]]:
    """Of all responses that come, each list on a connection of its own, all at once."""
    found: list[list[int]] = []
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(address)) for _ in sent]
        for connection, pieces in zip(connections, sent, strict=True):
            with suppress(ConnectionError):
                for piece in pieces:
                    connection.send(piece)
        for connection in connections:
            connection.lose_patience(0.01 if found else WAIT_SECONDS)
            found.append([])
            with suppress(ConnectionClosed, TimeoutError, ConnectionError):
                while True:
                    found[-1].append(connection.receive().status)
    return found


@pytest.fixture(scope="module")
def admin(start_shared_sidecar: StartSidecar) -> Address:
    return admin_address(start_shared_sidecar(ADMIN_CONFIG))


@pytest.mark.requirement("S3.8")
@pytest.mark.parametrize("token", [OPS, "wrong"], ids=["allowed", "refused"])
@pytest.mark.parametrize("deep", [1, 3])
@pytest.mark.parametrize("parted", [False, True], ids=["in one write", "in a second write"])
def test_a_token_in_a_trailer_opens_nothing_on_the_admin_listener(
    admin: Address, token: str, deep: int, parted: bool
) -> None:
    fields = (b"Content-Type: application/json", b"Authorization: Bearer " + token.encode())
    trailer = b"Authorization: Bearer %b\r\n" % OPS.encode()
    first = chunked("/api/v1/keys", trailer, *fields, host=b"localhost", body=b'{"name": "by a chunked request"}')
    second = clean(target="/api/v1/keys").replace(b"api.test", b"localhost")
    pieces = [first, first * (deep - 1) + second] if parted else [first * deep + second]
    answers = responses(admin, Sent(pieces=pieces))
    assert [answer.status for answer in answers] == [201 if token == OPS else 401]
    assert answers[0].header("Connection") == "close"


@pytest.fixture(scope="module")
def decider(start_shared_sidecar: StartSidecar) -> Decider:
    return start_decider(start_shared_sidecar)


@pytest.mark.requirement("S3.8")
@pytest.mark.parametrize("key", ["Ka", ""], ids=["allowed", "refused"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("parted", [False, True], ids=["in one write", "in a second write"])
def test_a_key_in_a_trailer_opens_nothing_for_the_next_question(
    decider: Decider, dialect: str, key: str, parted: bool
) -> None:
    asked = question(dialect, "GET", "/admin/x", [*decider.credential(key), ("Transfer-Encoding", "chunked")])
    first = asked + b"0\r\nAuthorization: Bearer %b\r\n\r\n" % decider.keys["Ka"].text.encode()
    second = question(dialect, "GET", "/admin/x")
    pieces = [first, first + second] if parted else [first * 2 + second]
    answers = responses(decider.address, Sent(pieces=pieces))
    assert [answer.status for answer in answers] == [200 if key else 401]


@pytest.mark.requirement("S3.8")
@pytest.mark.parametrize("parted", [False, True], ids=["in one write", "in a second write"])
def test_a_chunked_request_is_the_last_of_its_connection_on_the_ops_listener(site: Site, parted: bool) -> None:
    first = b"GET /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAccept: x/y\r\n\r\n"
    second = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    answers = responses(site.sidecar.ops, Sent(pieces=[first, second] if parted else [first + second]))
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"ok\n")]


@pytest.mark.requirement("S3.8")
def test_chunked_uploads_reuse_one_connection(site: Site) -> None:
    with site.sidecar.connect() as connection:
        for number in range(50):
            body = b"\r\n\r\n" * number + b"x"
            answer = connection.exchange(chunked("/public/up", b"X-Api-Key: k\r\n", body=body))
            assert answer.status == 200
            [seen] = site.upstream.requests()
            assert seen.body == body and not seen.all("X-Api-Key")
            site.upstream.clear()


@pytest.mark.requirement("S3.8")
@pytest.mark.parametrize("deep", [1, 40, 100])
def test_trailers_never_become_headers_when_the_parser_has_to_wait(site: Site, alone: bytes, deep: int) -> None:
    """Bodies larger than what is read ahead, and more requests at once than are queued."""
    first = chunked("/public/x", with_key(TRAILERS[1], site), body=b"0\r\n\r\n" * (100_000 // deep)) * deep
    for key, status in (("", 401), (site.keys["Kr"], 200)):
        answers = responses(site.sidecar.data, Sent(pieces=[b"", first + clean(key)], answers=0))
        assert [answer.status for answer in answers] == [200] * deep + [status]
        assert list(clean_ones(site)) == ([alone] if key else [])
        site.upstream.clear()


@pytest.mark.requirement("S3.8")
@pytest.mark.parametrize("seed", range(10))
def test_trailers_never_become_headers_however_the_bytes_are_split(site: Site, alone: bytes, seed: int) -> None:
    choose = random.Random(seed)  # noqa: S311  # not for secrets
    trailers = [with_key(choose.choice(TRAILERS), site) for _ in range(6)]
    whole = b"".join(chunked("/public/x", trailer, body=b"\r\n\r\n0\r\n") for trailer in trailers)
    for key, status in (("", 401), (site.keys["Kr"], 200)):
        sent = whole + clean(key)
        cuts = sorted(choose.sample(range(1, len(sent)), 30))
        pieces = [sent[start:end] for start, end in pairwise([0, *cuts, len(sent)])]
        answers = responses(site.sidecar.data, Sent(pieces=pieces, answers=0))
        assert [answer.status for answer in answers] == [200] * 6 + [status]
        assert list(clean_ones(site)) == ([alone] if key else [])
        site.upstream.clear()


@pytest.mark.requirement("S3.8")
def test_behind_haproxy_with_shared_connections_no_client_is_mistaken_for_another(site: Site, tmp_path: Path) -> None:
    trailers = [with_key(trailer, site) for trailer in (TRAILERS[1], TRAILERS[2], TRAILERS[6])]
    for reuse in ("safe", "always"):
        with haproxy(tmp_path, reuse, site.sidecar.data) as front:
            served = [
                answer.status
                for number in range(50)
                for attack in [
                    responses(front, Sent(pieces=[chunked("/public/x", trailers[number % 3], b"Connection: close")]))
                ]
                for answer in responses(front, Sent(pieces=[clean()]))
                if attack[0].status == 200
            ]
        assert served == [401] * 50


@contextmanager
def haproxy(folder: Path, reuse: str, sidecar: Address) -> Iterator[Address]:
    """HAProxy with default settings: one connection to the sidecar for all its clients."""
    port = free_port()
    config = folder / f"haproxy-{reuse}.cfg"
    config.write_text(HAPROXY.format(port=port, reuse=reuse, host=sidecar[0], sidecar=sidecar[1]), encoding="utf-8")
    with subprocess.Popen([needed("haproxy"), "-db", "-f", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            assert comes_to_listen(process, port)
            yield ("127.0.0.1", port)
        finally:
            process.terminate()
