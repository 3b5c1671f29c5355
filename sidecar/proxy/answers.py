"""An upstream's answer: its head, and its body as it comes in."""

from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from typing import Protocol

from sidecar.core.errors import Fault, Reason

HeaderList = list[tuple[bytes, bytes]]
Informational = Callable[[int, bytes, HeaderList], None]
"""Told of an interim answer: status, reason phrase, end-to-end headers."""


class Flow(Protocol):
    """Something that can be held back."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Source(Flow, Protocol):
    """The connection that an answer comes from."""

    def send(self, data: bytes) -> None: ...

    def send_eof(self) -> bool: ...

    def draw_from(self, feeder: Flow | None) -> None: ...

    def leave(self, answer: "UpstreamAnswer") -> None: ...


class UpstreamAnswer:
    """The head of an answer, and its body as it comes in. Only end-to-end headers, exactly as sent.

    names: those of `headers`, in lower case. complete: the whole body is here.
    early: the request was not wholly sent when the answer began.
    chunked, sized: how the upstream delimits the body; neither, and it ends with the connection.
    """

    __slots__ = (
        "_done", "_failure", "_loop", "_pieces", "_write", "chunked", "complete", "early", "headers", "names",
        "on_gone", "reason", "sized", "source", "status", "upgrade",
    )  # fmt: skip

    def __init__(
        self, status: int, reason: bytes, headers: HeaderList, names: set[bytes], loop: AbstractEventLoop
    ) -> None:
        self.status, self.reason, self.headers, self.names = status, reason, headers, names
        self.chunked = self.sized = self.complete = self.early = False
        self.upgrade: bytes | None = None
        """Of a 101: the protocol that the upstream has switched to."""
        self.source: Source | None = None
        self.on_gone: Callable[[], None] | None = None
        """Told of the end of a switched connection."""
        self._loop = loop
        self._pieces: list[bytes] = []
        self._write: Callable[[bytes], None] | None = None
        self._done: Future[None] | None = None
        self._failure: Fault | None = None

    @property
    def flowing(self) -> bool:
        """Someone takes the body as it comes in."""
        return self._write is not None

    def pause_reading(self) -> None:
        """Whoever takes the body cannot take more now."""
        if self.source is not None and not self.complete:
            self.source.pause_reading()

    def resume_reading(self) -> None:
        if self.source is not None and not self.complete:
            self.source.resume_reading()

    def take(self) -> bytes:
        """What is here of the body."""
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def pour(self, write: Callable[[bytes], None]) -> None:
        """Hand the body to `write`, each piece as it comes in. Raises Fault where the answer breaks off."""
        if here := self.take():
            write(here)
        if self._failure is not None:
            raise self._failure
        if not self.complete:
            self._write = write
            self._done = self._loop.create_future()
            await self._done

    def close(self) -> None:
        """The answer is not wanted any longer. What is still under way is broken off."""
        if self.source is not None:
            self.source.leave(self)

    # After a 101: the way back to the upstream.

    def send(self, data: bytes) -> None:
        if self.source is not None:
            self.source.send(data)

    def send_eof(self) -> bool:
        """Nothing more is sent. False where that cannot be told without closing."""
        return self.source is not None and self.source.send_eof()

    def draw_from(self, feeder: Flow | None) -> None:
        """Where what is sent comes from: it pauses while the upstream does not take more."""
        if self.source is not None:
            self.source.draw_from(feeder)

    # What the connection tells.

    def feed(self, data: bytes) -> None:
        if self._write is not None:
            self._write(data)
        else:
            self._pieces.append(data)

    def end(self) -> None:
        self.complete = True
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def fail(self, reason: Reason) -> None:
        self._failure = Fault(reason)
        if self._done is not None and not self._done.done():
            self._done.set_exception(self._failure)
