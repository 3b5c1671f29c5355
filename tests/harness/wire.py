"""A client of raw sockets: exact bytes out, one parsed answer at a time in."""

import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

TIMEOUT_SECONDS = 30.0
_NO_BODY = frozenset({204, 304})

Address = tuple[str, int]
Fields = Iterable[tuple[str, str]]


class ConnectionClosed(Exception):
    """The other end closed before a whole response had arrived. The message contains what had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One response as received; header fields in order, duplicates kept."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    interim: tuple[int, ...] = ()
    """Statuses of the 1xx answers before it."""

    def comparable(self) -> "Response":
        """Without its Date and the id of its request, to be compared with others."""
        own = ("date", "x-request-id")
        return replace(self, headers=tuple(pair for pair in self.headers if pair[0].lower() not in own))

    def all(self, name: str) -> list[str]:
        """Every value of a field, by its name in any case."""
        return [value for field, value in self.headers if field.lower() == name.lower()]

    def header(self, name: str) -> str:
        """The one value of a field."""
        values = self.all(name)
        assert len(values) == 1, f"{name} stands {len(values)} times in {self.headers}"
        return values[0]

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """A TCP connection. `source`: the local address to come from (any of 127.0.0.0/8), to be another client."""

    def __init__(self, address: Address, *, source: str = "") -> None:
        self._socket = socket.create_connection(
            address, timeout=TIMEOUT_SECONDS, source_address=(source, 0) if source else None
        )
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, raw: bytes) -> None:
        self._socket.sendall(raw)

    def end(self) -> None:
        """End our side, and keep receiving."""
        self._socket.shutdown(socket.SHUT_WR)

    def lose_patience(self, seconds: float) -> None:
        """From now on, wait no longer than this for anything."""
        self._socket.settimeout(seconds)

    def exchange(self, raw: bytes, *, head_only: bool = False) -> Response:
        """Send `raw`, read one answer. head_only: as to HEAD, no body follows whatever Content-Length says."""
        self.send(raw)
        return self.receive(head_only=head_only)

    def ask(self, method: str, target: str, headers: Fields = (), body: bytes = b"") -> Response:
        return self.exchange(request_bytes(method, target, headers, body), head_only=method == "HEAD")

    def receive(self, *, head_only: bool = False) -> Response:
        """The next answer, past any 1xx. Raises ConnectionClosed, TimeoutError."""
        interim: list[int] = []
        while True:
            status, headers = _parse_head(self._until(b"\r\n\r\n"))
            if status >= 200 or status == 101:
                break
            interim.append(status)
        body = b"" if head_only or status in _NO_BODY or status == 101 else self._body(headers)
        return Response(status=status, headers=headers, body=body, interim=tuple(interim))

    def rest(self) -> bytes:
        """Everything until the other end closes. Raises TimeoutError when it does not."""
        while self._fill():
            pass
        rest, self._buffer = self._buffer, b""
        return rest

    @property
    def received(self) -> bytes:
        """Received bytes that were not read yet."""
        return self._buffer

    def _body(self, headers: tuple[tuple[str, str], ...]) -> bytes:
        fields = {name.lower(): value for name, value in headers}
        if fields.get("transfer-encoding", "").lower() == "chunked":
            return self._chunks()
        if "content-length" in fields:
            return self._exactly(int(fields["content-length"]))
        return self.rest()

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self._until(b"\r\n").split(b";")[0], 16):
            body += self._exactly(size + 2)[:-2]
        while self._until(b"\r\n") != b"\r\n":
            pass
        return body

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._need()
        end = self._buffer.index(mark) + len(mark)
        return self._exactly(end)

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._need()
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _need(self) -> None:
        if not self._fill():
            raise ConnectionClosed(f"closed after {self._buffer!r}")

    def _fill(self) -> bool:
        try:
            received = self._socket.recv(1 << 16)
        except ConnectionResetError:
            return False
        self._buffer += received
        return bool(received)


def exchange(address: Address, raw: bytes, *, head_only: bool = False, source: str = "") -> Response:
    """One request of exact bytes on a connection of its own."""
    with Connection(address, source=source) as connection:
        return connection.exchange(raw, head_only=head_only)


def request_bytes(
    method: str, target: str, headers: Fields = (), body: bytes = b"", *, host: str = "api.test"
) -> bytes:
    """A well-formed request around whatever method, target and fields are given. Text is sent as Latin-1."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _parse_head(raw: bytes) -> tuple[int, tuple[tuple[str, str], ...]]:
    first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    return int(first.split(" ")[1]), tuple((name, value.strip(" \t")) for name, _, value in pairs)
