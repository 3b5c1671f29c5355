"""Messages between the processes of `sidecar serve --workers`.

The control process serves operators and proxies (ops, admin, forward auth) and does what must be done once; workers
serve the data listener. Each worker has a pair of sockets with the control process. The parent created them and keeps
them open, so that either end can be restarted. A message is one packet: it arrives completely, or not at all.
"""

import asyncio
import copyreg
import io
import os
import pickle
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import Any, ClassVar, Final

from sidecar.config.build.config import Config
from sidecar.config.fields import Address
from sidecar.limiter.shared import SharedLimiter
from sidecar.telemetry.refusals import Gathered
from sidecar.telemetry.snapshots import Snapshot, kept
from sidecar.usage.recorder import UsageHour

ANSWER_SECONDS: Final = 1.0
"""For a response, which arrives immediately or never."""
RECONFIGURE_SECONDS: Final = 30.0
PUSH_SECONDS: Final = 1.0
"""How often workers report their counts; kill -9 loses at most this much."""
_LAST_SECONDS: Final = 2.0
"""The time in which a drained worker must end."""
_INLINE_BYTES: Final = 32_768
"""The largest packet; larger content goes into a memory file, whose descriptor is sent."""
_MOST_AT_ONCE: Final = 64

Message = tuple[int, str, int, Any]
"""Sender's process id, command, number of the request (0: none), content."""


def _read_only(entries: dict[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(entries)


class _Pickler(pickle.Pickler):
    dispatch_table: ClassVar[Mapping[type, Any]] = {  # type: ignore[misc]  # as the documentation has it
        **copyreg.dispatch_table,
        MappingProxyType: lambda proxy: (_read_only, (dict(proxy),)),
    }


def packed_of(value: object) -> bytes:
    """Pickle a value, including the read-only mappings of a configuration."""
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def send(end: socket.socket, word: str, question: int = 0, content: Any = None) -> bool:
    """Send a message without waiting. False if the other end has stopped reading."""
    packed = packed_of((os.getpid(), word, question, content))
    with suppress(OSError):
        if len(packed) <= _INLINE_BYTES:
            return end.send(packed) > 0
        descriptor = os.memfd_create("sidecar-message", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "r+b") as file:
            file.write(packed)
            file.flush()
            return socket.send_fds(end, [b"-"], [descriptor]) > 0
    return False


def receive(end: socket.socket) -> Message:
    """The next message. Raises BlockingIOError if there is none, and EOFError if no more can arrive.

    Unpickled data is from our own processes: no others have an end of these sockets.
    """
    packed, descriptors, *_ = socket.recv_fds(end, _INLINE_BYTES + 1, 1)
    if not packed:
        raise EOFError
    for descriptor in descriptors:
        with os.fdopen(descriptor, "rb") as file:
            file.seek(0)
            packed = file.read()
    message: Message = pickle.loads(packed)  # noqa: S301 - our own
    return message


class Link:
    """One end, on the loop. Create it inside the running loop.

    on_message: receives command, request number, content and sender; `closed` if the other end is gone.
    """

    def __init__(self, end: socket.socket, on_message: Callable[[str, int, Any, int], None]) -> None:
        self._end, self._on_message = end, on_message
        end.setblocking(False)
        asyncio.get_running_loop().add_reader(end.fileno(), self.read)

    def send(self, word: str, question: int = 0, content: Any = None) -> bool:
        return send(self._end, word, question, content)

    def read(self) -> None:
        """Handle arrived messages, only so many at once that requests do not wait for them."""
        for _ in range(_MOST_AT_ONCE):
            try:
                pid, word, question, content = receive(self._end)
            except (BlockingIOError, InterruptedError):
                return
            except (OSError, EOFError):
                self.close()
                self._on_message("closed", 0, None, 0)
                return
            self._on_message(word, question, content, pid)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._end.fileno())


# The messages.


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What all processes of a sidecar inherit from the parent.

    sockets: of the data listener, bound to `addresses`. log_lock, stderr_lock: as in
    `telemetry.access_log.lines_writer`.
    """

    workers: int
    sockets: Sequence[socket.socket]
    addresses: Sequence[Address]
    limiter: SharedLimiter
    log_lock: int
    stderr_lock: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What the control process also has; see `Workers`."""

    common: Common
    ends: Sequence[socket.socket]
    parent: socket.socket
    life: int
    """Ends when the parent has died."""
    before: "Begin | None" = None
    """What was in force in the control process in whose place this one was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """How a worker is to begin, or a control process in place of one that has died: the configuration in force, and
    whether `sidecar drain` is. ends: whether the process that says so ends by itself, and nothing is to be taken up."""

    config: Config
    drains: bool
    ends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """What a worker has counted. metrics: since its start; the rest since its last push.

    remarks: why it cannot ask the shared counts now, as lines for readiness.
    """

    metrics: Snapshot
    usage: Sequence[UsageHour]
    refusals: Gathered
    remarks: Sequence[str] = ()


# The control process's side.


class _Member:
    """A worker as the control process knows it. pid: 0 while none runs."""

    def __init__(self, number: int) -> None:
        self.number, self.pid, self.is_up = number, 0, False
        self.metrics: Snapshot = ()
        self.remarks: Sequence[str] = ()


class Workers:
    """All workers as one; also a `runtime.tasks.Server`. Create it inside the running loop.

    ends: those of the sockets to each worker. parent: that of the socket to the parent. begin: how a worker that starts
    now must begin. on_push: receives the counts of a worker, except its metrics.
    """

    def __init__(
        self,
        ends: Sequence[socket.socket],
        parent: socket.socket,
        *,
        begin: Callable[[], Begin],
        on_push: Callable[[Push], None],
    ) -> None:
        self._begin, self._on_push = begin, on_push
        self._members = [_Member(number) for number in range(1, len(ends) + 1)]
        self._links = [Link(end, self._reader_of(member)) for end, member in zip(ends, self._members, strict=True)]
        self._parent = Link(parent, self._on_parent_message)
        self._questions, self._answers = count(1), dict[int, asyncio.Future[Any]]()
        self._ended: Snapshot = ()
        self._changed = asyncio.Event()
        self._seen_up = set[int]()
        self.restarts = 0
        """Workers that were restarted."""

    def __len__(self) -> int:
        """The number of serving workers."""
        return sum(member.is_up for member in self._members)

    def tell_parent(self, word: str) -> None:
        self._parent.send(word)

    def tell_in_force(self) -> None:
        """Let the parent keep how a control process begins that is started in place of this one."""
        begin = self._begin()
        if not begin.ends:
            self._parent.send("in force", 0, begin)

    async def all_up(self) -> None:
        """Wait until each has begun to serve once."""
        while len(self._seen_up) < len(self._members):
            await self._change()

    def snapshots(self) -> Mapping[str, Snapshot]:
        """By worker, with the counts of ended ones under the empty name. For any thread."""
        return {"": self._ended, **{str(member.number): member.metrics for member in list(self._members)}}

    def remarks(self) -> Sequence[str]:
        """Those of all, as they last told, each once."""
        return [*dict.fromkeys(line for member in self._members for line in member.remarks)]

    async def collect(self) -> None:
        """Let each worker report its counts so far."""
        await self._ask_all("push")

    async def answer(self, *, least: int) -> bool:
        """Whether each serving worker responds, and at least this many do."""
        answers = await self._ask_all("probe")
        return len(answers) >= least and all(answers)

    async def reconfigure(self, config: Config) -> Sequence[str]:
        """Let each serve by `config`; gives what kept some from it."""
        self.tell_in_force()
        problems = await self._ask_all("reconfigure", config, within_seconds=RECONFIGURE_SECONDS)
        return [problem or "no answer" for problem in problems if problem != ""]

    def close_when_idle(self) -> None:
        self.tell_in_force()
        self._send_all("announce")

    def keep_open(self) -> None:
        self.tell_in_force()
        self._send_all("undo")

    async def stop(self, *, grace_seconds: float) -> None:
        """Wait for them to end; the parent has told them to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds + _LAST_SECONDS):
                while any(member.pid for member in self._members):
                    await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _send_all(self, word: str) -> None:
        for link in self._links:
            link.send(word)

    async def _ask_all(self, word: str, content: Any = None, *, within_seconds: float = ANSWER_SECONDS) -> list[Any]:
        """The response of each serving worker; None if it is late. Workers that end meanwhile are ignored."""
        asked = {member.number: member.pid for member in self._members if member.is_up}
        answers = await asyncio.gather(*(self._ask(number, word, content, within_seconds) for number in asked))
        still = {member.number: member.pid for member in self._members}
        return [answer for (number, pid), answer in zip(asked.items(), answers, strict=True) if still[number] == pid]

    async def _ask(self, number: int, word: str, content: Any, within_seconds: float) -> Any:
        question, answer = next(self._questions), asyncio.get_running_loop().create_future()
        self._answers[question] = answer
        try:
            if not self._links[number - 1].send(word, question, content):
                return None
            await asyncio.wait([answer], timeout=within_seconds)
            return answer.result() if answer.done() else None
        finally:
            del self._answers[question]

    def _reader_of(self, member: _Member) -> Callable[[str, int, Any, int], None]:
        def read(word: str, question: int, content: Any, pid: int) -> None:
            if word == "closed":
                return
            if pid != member.pid:
                self._replace(member, pid)
                if word != "hello":
                    self._bring_in_line(member.number)
            self._on_worker_message(member, word, content)
            answer = self._answers.get(question)
            if answer is not None and not answer.done():
                answer.set_result(content)

        return read

    def _on_worker_message(self, member: _Member, word: str, content: Any) -> None:
        match word:
            case "hello":
                self._links[member.number - 1].send("begin", 0, self._begin())
            case "up":
                member.is_up = True
                self._seen_up.add(member.number)
                self._parent.send("worker up", member.number, member.pid)
                self._changed.set()
            case "push":
                member.metrics, member.remarks, member.is_up = content.metrics, content.remarks, True
                self._seen_up.add(member.number)
                self._changed.set()
                self._on_push(content)

    def _bring_in_line(self, number: int) -> None:
        """Configure a worker that was serving before this process was restarted."""
        link, begin = self._links[number - 1], self._begin()
        link.send("reconfigure", 0, begin.config)
        link.send("announce" if begin.drains else "undo")

    def _on_parent_message(self, word: str, number: int, content: Any, _: int) -> None:
        if word == "closed":  # The parent has died, and workers end by themselves.
            for member in self._members:
                self._replace(member, 0)
            self._changed.set()
        if word != "ended":
            return
        member = self._members[number - 1]
        self._links[number - 1].read()  # Read its earlier messages.
        if member.pid == content:
            self._replace(member, 0)
        self._changed.set()

    def _replace(self, member: _Member, pid: int) -> None:
        """A worker has ended, or another has begun; the counts of the old one are kept."""
        if member.pid:
            self._ended, member.metrics = kept(self._ended, member.metrics), ()
        self.restarts += pid != 0 and member.number in self._seen_up
        member.pid, member.is_up, member.remarks = pid, False, ()


# A worker's side.


@dataclass(frozen=True, slots=True, kw_only=True)
class Duties:
    """A worker's commands. reconfigure: returns why it failed, or nothing."""

    metrics: Callable[[], Snapshot]
    """For any thread: with many routes, it takes tens of milliseconds."""
    push: Callable[[Snapshot], Push]
    keep: Callable[[Push], None]
    """Takes back counts that could not be sent."""
    answers: Callable[[], Awaitable[bool]]
    reconfigure: Callable[[Config], Awaitable[str]]
    announce: Callable[[], object]
    undo: Callable[[], object]


class Worker:
    """This worker's side of the link to the control process. Create it inside the running loop."""

    def __init__(self, end: socket.socket) -> None:
        self._link = Link(end, self._on_command)
        self._begin: asyncio.Future[Begin] = asyncio.get_running_loop().create_future()
        self._duties: Duties | None = None
        self._pushing = asyncio.Lock()
        self._tasks = set[asyncio.Task[None]]()

    async def begin(self) -> Begin:
        """Wait for the Begin message, also while the control process is being restarted."""
        self._link.send("hello")
        return await self._begin

    def serve(self, duties: Duties) -> None:
        """Report that it serves, and carry out commands."""
        self._duties = duties
        self._link.send("up")

    async def push(self, question: int = 0) -> None:
        """Report its counts; one report at a time, so that an older snapshot never follows a newer one."""
        duties = self._duties
        if duties is None:
            return
        async with self._pushing:
            counts = duties.push(await asyncio.to_thread(duties.metrics))
            if not await asyncio.to_thread(self._link.send, "push", question, counts):
                duties.keep(counts)

    def _on_command(self, word: str, question: int, content: Any, _: int) -> None:
        duties = self._duties
        if word == "begin" and not self._begin.done():
            self._begin.set_result(content)
        if duties is None:
            return
        match word:
            case "push":
                self._start(self.push(question))
            case "probe":
                self._start(self._answer(question, duties.answers()))
            case "reconfigure":
                self._start(self._answer(question, duties.reconfigure(content)))
            case "announce":
                duties.announce()
            case "undo":
                duties.undo()

    async def _answer(self, question: int, work: Awaitable[Any]) -> None:
        self._link.send("answer", question, await work)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
