"""The upstream process as tests see it."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.harness.processes import Process, clean_environ, python
from tests.harness.wire import TIMEOUT_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One request as it reached the upstream, byte for byte."""

    connection: int
    """Number of the connection that it came on, from 1."""
    head: bytes
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    """Names as sent; bytes as Latin-1."""
    body: bytes
    malformed: bool

    def all(self, name: str) -> list[str]:
        """Every value of a field, by its name in any case."""
        return [value for field, value in self.headers if field.lower() == name.lower()]

    def header(self, name: str) -> str:
        """The one value of a field."""
        values = self.all(name)
        assert len(values) == 1, f"{name} stands {len(values)} times in {self.headers}"
        return values[0]

    @property
    def names(self) -> set[str]:
        """Field names in lower case."""
        return {name.lower() for name, _ in self.headers}


class Upstream:
    """Queries the running process for what it has seen, and plans its responses."""

    def __init__(self, port: int, control: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._control = socket.create_connection(("127.0.0.1", control), timeout=TIMEOUT_SECONDS)
        self._responses = self._control.makefile("rb")

    def close(self) -> None:
        self._responses.close()
        self._control.close()

    def requests(self) -> list[Recorded]:
        """Every request since the last `clear`, in order of arrival."""
        return [_recorded(seen) for seen in self._command(op="requests")]

    def last(self) -> Recorded:
        """The one request since the last `clear`, which it then forgets."""
        seen = self.requests()
        assert len(seen) == 1, f"{len(seen)} requests reached the upstream"
        self.clear()
        return seen[0]

    def clear(self) -> None:
        """Forget every request and every planned response."""
        self._command(op="clear")

    def plan(self, raw: bytes, *, close: bool = False) -> None:
        """Answer the next request with exactly these bytes; `close`: and then close the connection."""
        self._command(op="answer", raw=raw.decode("latin-1"), close=close)

    def _command(self, **command: object) -> Any:
        self._control.sendall(json.dumps(command).encode() + b"\n")
        return json.loads(self._responses.readline())


@contextmanager
def running_upstream() -> Iterator[Upstream]:
    """An upstream process, ready; stopped at the end."""
    process = Process(python(["tests.harness.upstream"], clean_environ()))
    line = process.stdout.wait_for(lambda line: line.startswith("{"))
    if line is None:
        raise process.failure()
    ports = json.loads(line)
    upstream = Upstream(ports["port"], ports["control"])
    try:
        yield upstream
    finally:
        upstream.close()
        process.stop()


def _recorded(seen: dict[str, Any]) -> Recorded:
    return Recorded(
        connection=seen["connection"],
        head=seen["head"].encode("latin-1"),
        method=seen["method"],
        target=seen["target"],
        headers=tuple((name, value) for name, value in seen["headers"]),
        body=seen["body"].encode("latin-1"),
        malformed=seen["malformed"],
    )
