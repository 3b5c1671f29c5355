"""Takes in flight on one connection: what is asked in one turn of the loop leaves at once, replies come in order."""

import asyncio
from collections import deque
from typing import Any, Final

from msgspec import Struct

from sidecar.limiter.redis.connecting import Command, ScriptMissing, Server
from sidecar.limiter.redis.script import Reply, Script, is_reply
from sidecar.limiter.remote import Unavailable

_LATE_SECONDS: Final = 0.005
"""A deadline that is seen this much too late was seen by a busy loop, which may not have read what has come."""
_GRACES: Final = 3
_OTHERWISE: Final = "it answers otherwise than the script does"


class _Asked(Struct, gc=False):
    """A command in flight. reply: None where nobody waits for it; cancelled where whoever waited has gone."""

    command: Command
    reply: "asyncio.Future[Reply] | None"
    deadline: float


class Pipeline:
    """Asks one server, until something is wrong; then all that is in flight fails, and `run` raises Unavailable.

    Replies are told apart by their order alone, so a connection on which one is missing is never used again: what
    comes late comes to nobody. timeout: seconds from the question to the answer.
    """

    def __init__(self, server: Server, script: Script, *, timeout: float) -> None:
        self._server, self._script, self._timeout = server, script, timeout
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        self._has_unsent = asyncio.Event()
        self._in_flight: deque[_Asked] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._overdue: asyncio.Future[None] = self._loop.create_future()
        self._reloading = False
        self._problem: Unavailable | None = None

    def ask(self, command: Command) -> "asyncio.Future[Reply]":
        """Raises Unavailable through the future. Cancelling it is harmless: its reply is dropped when it comes."""
        reply: asyncio.Future[Reply] = self._loop.create_future()
        if self._problem is not None:
            reply.set_exception(self._problem)
            return reply
        self._send(_Asked(command, reply, self._loop.time() + self._timeout))
        if self._watch is None:
            self._watch_at(self._in_flight[0].deadline, _GRACES)
        return reply

    async def run(self) -> None:
        """Ends by raising Unavailable, or by being cancelled."""
        problem = Unavailable("connection", "the sidecar stops")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write())
                group.create_task(self._read())
                group.create_task(self._end_when_overdue())
        except* Unavailable as errors:
            problem = next(error for error in errors.exceptions if isinstance(error, Unavailable))
        finally:
            self._fail(problem)
            await self._server.close()
        raise problem

    def _send(self, asked: _Asked) -> None:
        self._in_flight.append(asked)
        self._unsent.append(self._server.packed(asked.command))
        self._has_unsent.set()

    async def _write(self) -> None:
        while True:
            await self._has_unsent.wait()
            self._has_unsent.clear()
            unsent, self._unsent = self._unsent, []
            await self._server.write(b"".join(unsent))

    async def _read(self) -> None:
        while True:
            try:
                reply = await self._server.read()
            except ScriptMissing:
                self._ask_again(self._in_flight.popleft())
            else:
                self._hand_out(reply)

    def _hand_out(self, reply: Any) -> None:
        if not self._in_flight:
            raise Unavailable("script", "it answers what nobody asked")
        asked = self._in_flight.popleft()
        if asked.reply is None:
            self._reloading = False
            return
        if not is_reply(reply):
            self._in_flight.appendleft(asked)  # It fails with all others.
            raise Unavailable("script", _OTHERWISE)
        if not asked.reply.done():
            asked.reply.set_result(reply)

    def _ask_again(self, asked: _Asked) -> None:
        """The server knew no script, and has done nothing: load it, once for all that was in flight."""
        if not self._reloading:
            self._reloading = True
            self._send(_Asked(self._script.load, None, asked.deadline))
        if asked.reply is not None and not asked.reply.done():
            self._send(asked)

    def _watch_at(self, due: float, graces: int) -> None:
        self._watch = self._loop.call_at(due, self._check, due, graces)

    def _check(self, due: float, graces: int) -> None:
        """Whether the oldest question is overdue. A loop that was busy itself first gets some turns to read."""
        self._watch = None
        if not self._in_flight:
            return
        now, deadline = self._loop.time(), min([asked.deadline for asked in self._in_flight])
        if now < deadline:
            self._watch_at(deadline, _GRACES)
        elif now - due > _LATE_SECONDS and graces:
            self._watch_at(now + _LATE_SECONDS, graces - 1)
        elif not self._overdue.done():
            self._overdue.set_exception(Unavailable("timeout", f"no answer within {self._timeout:g} s"))

    async def _end_when_overdue(self) -> None:
        await self._overdue

    def _fail(self, problem: Unavailable) -> None:
        self._problem = problem
        if self._watch is not None:
            self._watch.cancel()
        if not self._overdue.done():
            self._overdue.cancel()
        in_flight, self._in_flight = self._in_flight, deque()
        for asked in in_flight:
            if asked.reply is not None and not asked.reply.done():
                asked.reply.set_exception(problem)


async def probe(server: Server, script: Script, *, within: float) -> None:
    """Loads the script, and takes once by it, `within` seconds. Raises Unavailable."""
    await server.write(server.packed(script.load))
    await server.read()
    try:
        async with asyncio.timeout(within):
            await server.write(server.packed(script.probe))
            if not is_reply(await server.read()):
                raise Unavailable("script", _OTHERWISE)
    except TimeoutError:
        raise Unavailable("timeout", f"no answer within {within:g} s") from None
    except ScriptMissing:
        raise Unavailable("script", "it forgets the script as soon as it is loaded") from None
