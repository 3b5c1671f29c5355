"""Hostile requests, each in a file, sent to the real process.

Fields of a file: `status` of the first answer, any one of several (`none`: closed without an answer); `answers`, their
number (1); `upstream`, how many requests may reach it (0); `end` of the connection: `close` (the default), `open`
(the next request on it is answered as its own), `any`, or `wait` (more is waited for); `body` that the upstream gets.
"""

from pathlib import Path

import pytest

from tests.harness.wire import Response
from tests.wire.corpus.case import Case, load
from tests.wire.corpus.stage import HANG_SECONDS, Stage, received, send, untroubled

CASES = load(Path(__file__).parent / "requests")


def test_the_corpus_of_requests_exists() -> None:
    assert len(CASES) >= 80


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_request_gets_the_expected_response(stage: Stage, case: Case) -> None:
    raw = case.sent(stage.keys)
    with stage.sidecar.connect() as connection:
        connection.lose_patience(HANG_SECONDS)
        send(connection, raw)
        responses = received(connection, case, head_only=raw.startswith(b"HEAD "))
    seen = stage.seen()
    check_answers(case, responses)
    assert len(seen) in case.numbers("upstream", "0"), seen
    assert [recorded.head for recorded in seen if recorded.malformed] == []
    assert [recorded.target for recorded in seen if "smuggled" in recorded.target] == []
    if "body" in case.fields:
        assert [recorded.body for recorded in seen] in ([], [case.bytes_of("body")])
    untroubled(stage.sidecar)


def check_answers(case: Case, responses: list[Response]) -> None:
    statuses = [response.status for response in responses]
    assert 500 not in statuses
    if case.fields.get("end") == "wait" or case.fields["status"] == "none":
        assert statuses == []
        return
    assert len(statuses) in case.numbers("answers", "1"), statuses
    assert statuses[0] in case.numbers("status", ""), statuses
    for response in responses:
        if 400 <= response.status < 500:
            assert response.header("Cache-Control") == "no-store"
            assert b"smuggled" not in response.body
