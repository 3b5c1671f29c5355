"""An upstream in its own process: a small HTTP/1.1 server that records the exact bytes of every request.

Run as `python -m tests.harness.upstream`. Prints one JSON line, `{"port": …, "control": …}`, and serves until SIGTERM.

The control port takes one JSON object a line and answers with one:
`{"op": "requests"}` every recorded request in order, `{"op": "clear"}` forgets them and every planned answer,
`{"op": "answer", "raw": …, "close": …}` plans the exact bytes that answer the next unplanned request.
Bytes travel in JSON as Latin-1 text. Unplanned requests get 200 and a JSON object that tells what was seen.
"""

import asyncio
import json
import signal
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field

MAX_HEAD = 1 << 20


@dataclass(slots=True, kw_only=True)
class Seen:
    """One request as its bytes arrived; `malformed` where they were none."""

    connection: int
    head: str
    method: str = ""
    target: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: str = ""
    malformed: bool = False


class Recorder:
    """Serves and records. One per process."""

    def __init__(self) -> None:
        self._seen: list[Seen] = []
        self._planned: deque[tuple[bytes, bool]] = deque()
        self._connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number, again = self._connections, True
        while again:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as ended:
                if ended.partial:
                    self._seen.append(Seen(connection=number, head=ended.partial.decode("latin-1"), malformed=True))
                return
            seen = _parse(head, number)
            self._seen.append(seen)
            if seen.malformed:
                writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            seen.body = (await _read_body(reader, seen)).decode("latin-1")
            again = await self._answer(seen, writer)

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(json.dumps(self._obey(json.loads(line))).encode() + b"\n")
            await writer.drain()

    def _obey(self, command: dict[str, object]) -> object:
        match command["op"]:
            case "requests":
                return [asdict(seen) for seen in self._seen]
            case "clear":
                self._seen.clear()
                self._planned.clear()
            case "answer":
                self._planned.append((str(command["raw"]).encode("latin-1"), bool(command["close"])))
        return {}

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        if self._planned:
            raw, close = self._planned.popleft()
        else:
            raw, close = _tell(seen), "close" in _values(seen, "connection")
        writer.write(raw)
        await writer.drain()
        return not close


def _parse(head: bytes, connection: int) -> Seen:
    text = head.decode("latin-1")
    first, *lines = text[: -len("\r\n\r\n")].split("\r\n")
    words = first.split(" ")
    fields = [line.partition(":") for line in lines]
    if len(words) != 3 or not all(colon for _, colon, _ in fields):
        return Seen(connection=connection, head=text, malformed=True)
    headers = [(name, value.strip(" \t")) for name, _, value in fields]
    return Seen(connection=connection, head=text, method=words[0], target=words[1], headers=headers)


async def _read_body(reader: asyncio.StreamReader, seen: Seen) -> bytes:
    """The body as it was framed before: chunks are taken out of their framing."""
    if "chunked" in _values(seen, "transfer-encoding"):
        chunks = bytearray()
        while size := int((await reader.readline()).split(b";")[0], 16):
            chunks += await reader.readexactly(size)
            await reader.readexactly(2)
        while await reader.readline() != b"\r\n":
            pass
        return bytes(chunks)
    lengths = _values(seen, "content-length")
    return await reader.readexactly(int(lengths[0])) if lengths else b""


def _values(seen: Seen, wanted: str) -> list[str]:
    return [value.lower() for name, value in seen.headers if name.lower() == wanted]


def _tell(seen: Seen) -> bytes:
    body = json.dumps({"upstream": True, "method": seen.method, "target": seen.target}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head if seen.method == "HEAD" else head + body


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _closing(serve: Serve) -> Serve:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    return served


async def run() -> None:
    recorder = Recorder()
    data = await asyncio.start_server(_closing(recorder.serve), "127.0.0.1", 0, limit=MAX_HEAD)
    control = await asyncio.start_server(_closing(recorder.control), "127.0.0.1", 0, limit=MAX_HEAD)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    ports = {"port": data.sockets[0].getsockname()[1], "control": control.sockets[0].getsockname()[1]}
    print(json.dumps(ports), flush=True)
    await stopped.wait()


if __name__ == "__main__":
    asyncio.run(run())
