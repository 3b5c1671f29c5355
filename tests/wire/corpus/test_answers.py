"""Hostile responses of an upstream, each in a file, sent to the real process.

Fields of a file: `status` that the client gets, any one of several; `body` that it gets with a status of the
upstream's: its bytes, `broken` (the connection ends before the answer does), or either (`broken or hello`); `method` of
the request (GET); `close`: the upstream closes after it; `reused`: `no` where its connection must carry nothing more.
"""

from pathlib import Path

import pytest

from sidecar.core.errors import UpstreamCause
from tests.harness.wire import Connection, ConnectionClosed, Response
from tests.wire.corpus.case import Case, load
from tests.wire.corpus.stage import HANG_SECONDS, Stage, untroubled

CASES = load(Path(__file__).parent / "answers")


def test_the_corpus_of_responses_exists() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_response_reaches_no_other_client(stage: Stage, case: Case) -> None:
    stage.upstream.plan(case.sent({}), close="close" in case.fields)
    method = case.fields.get("method", "GET")
    with stage.sidecar.connect() as client, stage.sidecar.connect() as other:
        client.lose_patience(HANG_SECONDS)
        response = asked(client, method, case.name)
        own(other, "/public/other")
        own(other, "/public/another")
    if response is None:
        assert "broken" in case.fields.get("body", ""), "broken off"
    else:
        check(case, response)
    if response is not None and response.status == 502:
        check_cause(stage, case, response)
    check_upstream(stage, case, refused=response is not None and response.status == 502)
    untroubled(stage.sidecar)


def asked(client: Connection, method: str, request_id: str) -> Response | None:
    """The response; None if it was cut off. A client whose connection stays open gets its own response next."""
    try:
        response = client.ask(method, "/public/hostile", [("X-Request-Id", request_id)])
    except ConnectionClosed:
        return None
    if "close" not in [option.lower() for option in response.all("Connection")]:
        own(client, "/public/next")
    return response


def own(client: Connection, target: str) -> None:
    response = client.ask("GET", target)
    assert (response.status, response.json()["target"]) == (200, target)


def check(case: Case, response: Response) -> None:
    assert response.status in case.numbers("status", ""), response
    assert "evil" not in str(response)
    if response.status == 502:
        assert response.header("Cache-Control") == "no-store"
        assert b"hello" not in response.body
    elif b"upstream" not in response.body:
        wanted = case.fields.get("body", "").removeprefix("broken or ").encode()
        assert response.body == wanted, response


def check_cause(stage: Stage, case: Case, response: Response) -> None:
    """The operator learns what was wrong with it, and the client does not."""
    line = stage.sidecar.logged(lambda line: line["request_id"] == case.name)
    assert line["cause"] in set(UpstreamCause) - {UpstreamCause.OTHER}
    assert line["cause"] not in str(response)


def check_upstream(stage: Stage, case: Case, *, refused: bool) -> None:
    """A closed connection carries nothing more; the upstream got no request that no client sent."""
    seen = stage.upstream.requests()
    assert {recorded.target for recorded in seen} <= {
        f"/public/{name}" for name in ("hostile", "next", "other", "another")
    }
    first = seen[0]
    if refused or case.fields.get("reused") == "no" or "close" in case.fields:
        assert [recorded.target for recorded in seen if recorded.connection == first.connection][1:] == []
