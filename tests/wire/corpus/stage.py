"""The setting for hostile bytes, and the conditions that must hold afterwards."""

from contextlib import suppress
from dataclasses import dataclass

import pytest

from tests.harness.recording import Recorded, Upstream
from tests.harness.running import Sidecar
from tests.harness.wire import Connection, ConnectionClosed, Response
from tests.wire.corpus.case import Case

WAIT_SECONDS = 0.15
"""Silence of this length counts as waiting."""

HANG_SECONDS = 20.0
"""Silence of this length, when something must arrive, is a hang."""

_TROUBLE = ("Traceback", "internal error", "Task exception", "never retrieved", "never awaited", "Unhandled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    sidecar: Sidecar
    upstream: Upstream
    keys: dict[str, str]

    def alive(self, target: str) -> None:
        """Another client's request gets its own response."""
        response = self.sidecar.ask("GET", target)
        assert (response.status, response.json()["target"]) == (200, target)

    def seen(self) -> list[Recorded]:
        """What has reached the upstream, once a later request has arrived there."""
        self.alive("/public/settled")
        return [recorded for recorded in self.upstream.requests() if recorded.target != "/public/settled"]


def send(connection: Connection, raw: bytes) -> None:
    """Send as much as the other end accepts."""
    with suppress(ConnectionError):
        connection.send(raw)


def answers_until_closed(connection: Connection, *, head_only: bool) -> list[Response]:
    """All responses; only the end of the connection may follow. Raises TimeoutError without it."""
    responses = []
    while True:
        try:
            responses.append(connection.receive(head_only=head_only))
        except ConnectionClosed as closed:
            assert str(closed) == "closed after b''", closed
            return responses


def received(connection: Connection, case: Case, *, head_only: bool) -> list[Response]:
    """The responses, up to the expected `end`. Raises TimeoutError if the other end hangs."""
    match case.fields.get("end", "close"):
        case "close":
            return answers_until_closed(connection, head_only=head_only)
        case "open":
            wanted = max(case.numbers("answers", "1"))
            responses = [connection.receive(head_only=head_only) for _ in range(wanted)]
            after = connection.ask("GET", "/public/settled")
            assert after.json()["target"] == "/public/settled"
            return responses
        case "any":
            return [connection.receive(head_only=head_only) for _ in range(max(case.numbers("answers", "1")))]
        case "wait":
            connection.lose_patience(WAIT_SECONDS)
            with pytest.raises(TimeoutError):
                connection.receive()
            return []
        case other:
            raise ValueError(other)


def untroubled(sidecar: Sidecar) -> None:
    """Asserts that nothing went wrong inside: no traceback, no 500."""
    lines = sidecar.process.stderr.all()
    assert [line for line in lines if any(word in line for word in _TROUBLE)] == [], lines[-30:]
