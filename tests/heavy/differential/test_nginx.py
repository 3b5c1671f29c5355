"""What the gate reads as method, target and framing is what nginx behind it reads."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.harness.recording import Recorded, Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import ConnectionClosed, Response
from tests.heavy.differential.server import Nginx, running_nginx
from tests.heavy.fuzz.budget import budget
from tests.heavy.fuzz.requests import Request, valid
from tests.wire.corpus.case import Case, load
from tests.wire.corpus.stage import HANG_SECONDS, received, send
from tests.wire.security.site import CONFIG, keys_of

CORPUS = load(Path(__file__).parents[2] / "wire" / "corpus" / "requests")
ROUTES = {"* /public/**": "/public", "GET /items/**": "/items", "POST /items/**": "/items", "* /admin/**": "/admin"}
REACHED = {"": {"/public"}, "Kr": {"/public", "/items"}, "Kw": {"/public", "/items"}, "Ka": {"/public", "/admin"}}
"""What a key may reach, whatever it sends."""
SETTLED = "/public/settled"
PIECES = [
    "public", "items", "admin", "x", "/", "//", "/", ".", "..", ";", ";a=b", "%2f", "%2F", "%5c", "\\", "%2e", "%2e%2e",
    "%252e", "%252f", "%25", "%3b", "%3f", "%23", "%20", "+", "%c3%a4",
    "%41dmin", "PUBLIC", "?", "?x=/../admin", "&", ":", "@",
]  # fmt: skip


@dataclass(slots=True)
class Pair:
    """The sidecar before nginx before the recording upstream."""

    sidecar: Sidecar
    nginx: Nginx
    upstream: Upstream
    keys: dict[str, str]
    read_as: dict[str, str] = field(default_factory=dict)
    """Request id to the path that nginx read."""

    def ask(self, raw: bytes, *, head_only: bool) -> tuple[Response | None, list[Recorded]]:
        """The first answer, and what got through nginx; all of it as nginx says it is."""
        with self.sidecar.connect() as connection:
            connection.lose_patience(HANG_SECONDS)
            send(connection, raw)
            try:
                response = connection.receive(head_only=head_only)
            except ConnectionClosed:
                response = None
        return response, self.take()

    def take(self) -> list[Recorded]:
        """What has got through nginx; every request of it once."""
        through = self.upstream.requests()
        self.upstream.clear()
        for seen in through:
            identifier = seen.header("X-Request-Id")
            assert identifier not in self.read_as, "one request became two"
            self.read_as[identifier] = seen.header("X-Read-Path")
        return through


@pytest.fixture(scope="module")
def pair(
    start_shared_sidecar: StartSidecar, upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    upstream_process.clear()
    with running_nginx(tmp_path_factory.mktemp("nginx"), behind=upstream_process.url) as nginx:
        sidecar = start_shared_sidecar(CONFIG, upstream_url=nginx.url)
        pair = Pair(sidecar, nginx, upstream_process, keys_of(sidecar))
        yield pair
        assert sidecar.stop() == 0
        check_whole(pair, nginx.read(), [json.loads(line) for line in sidecar.process.stdout.all()])


def check_whole(pair: Pair, read: list[dict[str, Any]], decided: list[dict[str, Any]]) -> None:
    """Every request that nginx saw was decided on, once, and stands under the route that the decision named."""
    assert [line for line in read if line["status"] != "200"] == []
    assert max(Counter(line["id"] for line in read).values()) == 1
    routes = {line["request_id"]: line for line in decided if line["status"] == 200}
    assert len(read) > 250
    for line in read:
        decision = routes[line["id"]]
        prefix = ROUTES[decision["route"]]
        assert line["path"] == prefix or line["path"].startswith(f"{prefix}/"), (line, decision)
        assert line["method"] == decision["method"]
        # What looks like a key is not logged.
        logged, target = decision["path"].partition("[redacted]")[0], line["target"].partition("?")[0]
        assert target in decision["path"] or logged.endswith(target[: len(logged)]), (line, decision)


def check_reading(seen: Recorded, request: Request) -> None:
    """nginx read the client's method, target and length, and passed on the client's body."""
    assert seen.header("X-Read-Method") == request.method.decode()
    assert seen.header("X-Read-Target") == request.target.decode("latin-1")
    assert seen.header("X-Read-Host") == "api.test"
    if request.chunks is None:
        assert seen.all("X-Read-Length") == ([str(len(request.body))] if request.length else [])
    assert seen.body == request.body


def nginx_refuses(request: Request) -> bool:
    """It takes some fields once only that another upstream may take twice."""
    return sum(name.lower() == b"if-none-match" for name, _ in request.fields) > 1


def under(path: str, prefixes: set[str]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)


@budget(150)
@given(request=valid("/public", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]))
def test_a_valid_request_is_parsed_as_it_was_sent(pair: Pair, request: Request) -> None:
    assume(not nginx_refuses(request))
    response, through = pair.ask(request.raw(), head_only=request.method == b"HEAD")
    assert response is not None and response.status == 200, response
    (seen,) = through
    check_reading(seen, request)
    assert under(seen.header("X-Read-Path"), {"/public"})


@budget(350)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=8),
    start=st.sampled_from(["/public/", "/items/", "/admin/", "/"]),
    key=st.sampled_from(sorted(REACHED)),
    method=st.sampled_from(["GET", "POST"]),
)
def test_an_odd_path_reaches_the_route_that_was_decided_on(
    pair: Pair, pieces: list[str], start: str, key: str, method: str
) -> None:
    target = start + "".join(pieces)
    credential = f"Authorization: Bearer {pair.keys[key]}\r\n" if key else ""
    raw = f"{method} {target} HTTP/1.1\r\nHost: api.test\r\n{credential}\r\n".encode()
    response, through = pair.ask(raw, head_only=False)
    assert response is not None and response.status in (200, 400, 401, 403), response
    assert [response.status == 200] == [bool(through)]
    for seen in through:
        assert seen.header("X-Read-Target") == target
        assert under(seen.header("X-Read-Path"), REACHED[key]), target


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_every_accepted_request_of_the_corpus_is_one_request_to_nginx_too(pair: Pair, case: Case) -> None:
    if case.fields.get("end") == "wait":
        return
    raw = case.sent(pair.keys)
    with pair.sidecar.connect() as connection:
        connection.lose_patience(HANG_SECONDS)
        send(connection, raw)
        received(connection, case, head_only=raw.startswith(b"HEAD "))
    through = [seen for seen in pair.take() if seen.target != SETTLED]
    assert len(through) in case.numbers("upstream", "0")
    if "body" in case.fields:
        assert [seen.body for seen in through] in ([], [case.bytes_of("body")])
