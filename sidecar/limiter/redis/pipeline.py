"""Runs the script `take.lua` over one connection: all calls of one turn of the loop at once, replies in order."""

import asyncio
from collections import deque
from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from sidecar.core.model import Bucket, Quota, QuotaState, Taken, Window
from sidecar.core.quotas import (
    bucket_state,
    capacity,
    fixed_state,
    longest_refusal,
    micros,
    period_seconds,
    sliding_state,
)
from sidecar.limiter.redis.connecting import Command, ScriptMissing, Server
from sidecar.limiter.remote import Unavailable

TEXT: Final = files(__package__).joinpath("take.lua").read_text(encoding="utf-8")

FORMAT: Final = 1
"""Version of the stored format; part of each key, so that other versions count separately."""

_SECOND: Final = 1_000_000
_FIRST: Final = 3
"""The position of the first bucket's list in a reply."""
_MOST_KNOWN: Final = 4096
_SKEW_SECONDS: Final = 1.0
"""Clocks that differ by less count as equal, so that the end of a fixed window is a full second."""

Reply = list[Any]
"""1 if refused, seconds and microseconds of the server's clock, then a list of ints for each bucket."""


class Script:
    """The script as commands for one namespace, which is every key's hash tag, so that a Cluster keeps all together."""

    def __init__(self, namespace: str, text: str = TEXT) -> None:
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._prefix = f"{{{namespace}}}:{FORMAT}:"
        self._known: dict[tuple[str, int, int], tuple[Quota, str, tuple[str | int, ...]]] = {}
        """By the quota's name, limit and cost: the quota, the prefix of its keys, and the arguments."""

    @property
    def load(self) -> tuple[str, ...]:
        return ("SCRIPT", "LOAD", self.text)

    @property
    def any_key(self) -> str:
        """A key in the slot of all keys."""
        return f"{self._prefix}probe"

    @property
    def probe(self) -> tuple[str | int, ...]:
        """Takes from an unused count: fails on a server that cannot write."""
        return ("EVALSHA", self.sha, 1, self.any_key, 1, "f", 60, 1, 10**15, 0)

    def call(self, buckets: Sequence[Bucket], *, take: bool) -> list[str | int]:
        """The command for buckets, no two of which have the same quota and subject."""
        keys: list[str | int] = []
        arguments: list[str | int] = []
        for bucket in buckets:
            known = self._known.get((bucket.quota.name, bucket.limit, bucket.cost))
            if known is None or known[0] is not bucket.quota:
                known = self._know(bucket)
            subject = bucket.subject
            keys.append(known[1] + (subject[0] if len(subject) == 1 else _joined(subject)))
            arguments += known[2]
        return ["EVALSHA", self.sha, len(keys), *keys, 1 if take else 0, *arguments]

    def _know(self, bucket: Bucket) -> tuple[Quota, str, tuple[str | int, ...]]:
        quota = bucket.quota
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        by = "+".join(quota.by)
        prefix = f"{self._prefix}{quota.window}:{quota.period}:{by}:{_joined([quota.name])}:"
        arguments = (_kind(quota), period_seconds(quota), bucket.cost, bucket.limit, capacity(bucket))
        known = self._known[quota.name, bucket.limit, bucket.cost] = (quota, prefix, arguments)
        return known


def is_reply(answered: Any) -> bool:
    """Whether it has the script's form. Other kinds of servers send other replies."""
    return answered.__class__ is list and len(answered) > _FIRST and answered[_FIRST].__class__ is list


def taken_of(buckets: Sequence[Bucket], reply: Reply, now: float, *, take: bool) -> Taken:
    """States from the script's reply to `buckets`. `now` is the caller's clock, which the reset refers to."""
    refused, seconds, rest = reply[:3]
    there = seconds + rest / _SECOND
    states = [_state(bucket, reply[i], there, take=take and not refused) for i, bucket in enumerate(buckets, _FIRST)]
    if abs(now - there) >= _SKEW_SECONDS:
        states = [replace(state, resets_at=state.resets_at + now - there) for state in states]
    return Taken(states=tuple(states), refused=longest_refusal(states) if refused else None)


def _state(bucket: Bucket, counted: list[int], now: float, *, take: bool) -> QuotaState:
    match bucket.quota.window:
        case Window.FIXED:
            used, end = counted
            return fixed_state(bucket, used, end, now, take=take)
        case Window.SLIDING:
            return sliding_state(bucket, tuple(counted), now, take=take)
        case Window.BUCKET:
            tokens, owed = counted
            debt = tokens * period_seconds(bucket.quota) * _SECOND + owed, micros(now)
            return bucket_state(bucket, debt, take=take)


def _kind(quota: Quota) -> str:
    if quota.window is not Window.FIXED:
        return quota.window[0]
    return {"week": "w", "month": "m"}.get(str(quota.period), "f")


def _joined(parts: Sequence[str]) -> str:
    """Parts with their lengths: no name can be mistaken for two others."""
    return "".join([f"{len(part)}:{part}" for part in parts])


_LATE_SECONDS: Final = 0.005
"""If a deadline is noticed this much too late, the loop was busy and may not have read the replies."""
_GRACES: Final = 3
_OTHERWISE: Final = "its reply is not one of the script"


class _Asked(Struct, gc=False):
    """A command in flight. reply: None if nothing waits for it; cancelled if its waiter is gone."""

    command: Command
    reply: "asyncio.Future[Reply] | None"
    deadline: float


class Pipeline:
    """Talks to one server until an error; then everything in flight fails, and `run` raises Unavailable.

    Replies are matched only by their order, so a connection with a missing reply is never used again: late replies are
    discarded. timeout: seconds from command to reply.
    """

    def __init__(self, server: Server, script: Script, *, timeout: float) -> None:
        self._server, self._script, self._timeout = server, script, timeout
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        self._in_flight: deque[_Asked] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._failed: asyncio.Future[Unavailable] = self._loop.create_future()
        self._reloading = False
        self._problem: Unavailable | None = None

    def ask(self, command: Command) -> "asyncio.Future[Reply]":
        """Raises Unavailable through the future. Cancelling it is harmless: its reply is then discarded."""
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
        self._server.listen(self._hand_out, self._fail)
        try:
            raise await self._failed
        finally:
            self._fail(Unavailable("connection", "the sidecar stops"))
            self._server.close()

    def _send(self, asked: _Asked) -> None:
        self._in_flight.append(asked)
        if not self._unsent:
            self._loop.call_soon(self._write)
        self._unsent.append(self._server.packed(asked.command))

    def _write(self) -> None:
        unsent, self._unsent = self._unsent, []
        self._server.write(b"".join(unsent))

    def _hand_out(self, reply: Any) -> None:
        """Raises Unavailable for a reply that is not one of the script, or that no command waits for."""
        if not self._in_flight:
            raise Unavailable("script", "it sent a reply that nobody asked for")
        asked = self._in_flight.popleft()
        if reply.__class__ is ScriptMissing:
            self._ask_again(asked)
            return
        if asked.reply is None:
            self._reloading = False
            return
        if not is_reply(reply):
            self._in_flight.appendleft(asked)  # It fails with all the others.
            raise Unavailable("script", _OTHERWISE)
        if not asked.reply.done():
            asked.reply.set_result(reply)

    def _ask_again(self, asked: _Asked) -> None:
        """The server did not know the script, and did nothing: load it once for everything in flight."""
        if not self._reloading:
            self._reloading = True
            self._send(_Asked(self._script.load, None, asked.deadline))
        if asked.reply is not None and not asked.reply.done():
            self._send(asked)

    def _watch_at(self, due: float, graces: int) -> None:
        self._watch = self._loop.call_at(due, self._check, due, graces)

    def _check(self, due: float, graces: int) -> None:
        """Fail if the oldest command is overdue. A loop that was busy first gets some turns to read."""
        self._watch = None
        if not self._in_flight:
            return
        now, deadline = self._loop.time(), min([asked.deadline for asked in self._in_flight])
        if now < deadline:
            self._watch_at(deadline, _GRACES)
        elif now - due > _LATE_SECONDS and graces:
            self._watch_at(now + _LATE_SECONDS, graces - 1)
        else:
            self._fail(Unavailable("timeout", f"no answer within {self._timeout:g} s"))

    def _fail(self, problem: Unavailable) -> None:
        if self._problem is not None:
            return
        self._problem = problem
        if self._watch is not None:
            self._watch.cancel()
        if not self._failed.done():
            self._failed.set_result(problem)
        in_flight, self._in_flight = self._in_flight, deque()
        for asked in in_flight:
            if asked.reply is not None and not asked.reply.done():
                asked.reply.set_exception(problem)


async def probe(server: Server, script: Script, *, within: float) -> None:
    """Load the script, and take once with it, `within` seconds. Raises Unavailable."""
    await server.ask(script.load)
    try:
        async with asyncio.timeout(within):
            if not is_reply(await server.ask(script.probe)):
                raise Unavailable("script", _OTHERWISE)
    except TimeoutError:
        raise Unavailable("timeout", f"no answer within {within:g} s") from None
    except ScriptMissing:
        raise Unavailable("script", "it forgets the script as soon as it is loaded") from None
