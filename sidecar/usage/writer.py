"""Sums up counts and writes them in batches; what cannot be written waits for the next round."""

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

from sidecar.core.errors import Reason
from sidecar.core.units import Clock
from sidecar.usage.anomalies import agent_text, network_of
from sidecar.usage.recorder import Earlier, LastUse, UsageCounter, UsageHour, UsageRow, UsageSink

# User-Agent fields are stored and shown without keys: some clients put their key there.


HIDDEN: Final = "[redacted]"
_LIKE_A_KEY: Final = r"[0-9A-Za-z]{22,}"
"""128 random bits, as `looks_secret` recognises them: a program's name or version has no part of this length."""
_AFTER_A_PREFIX: Final = r"[^\s;,()\"']{16,}"
"""Also for keys made elsewhere, which may contain any characters."""

_ENCODED: Final = re.compile(r"[^\s;,()\"']*%[^\s;,()\"']*")
"""A word that contains an escape."""
_ESCAPE: Final = re.compile(r"%(?:25)*([0-9A-Fa-f]{2})")
"""An escape of a character, encoded once or more often: `%61`, `%2561`."""
_MOST_ROUNDS: Final = 4
"""Most rounds of decoding escapes of escapes (`%%36%31`). No client needs more."""


class UserAgents:
    """Removes keys from User-Agent fields. prefixes: those of keys."""

    def __init__(self, prefixes: Iterable[str] = ()) -> None:
        self.reconfigure(prefixes)

    def reconfigure(self, prefixes: Iterable[str]) -> None:
        """Use these prefixes from now on."""
        known = sorted({prefix for prefix in prefixes if prefix}, reverse=True)
        begun = f"(?:{'|'.join(map(re.escape, known))}){_AFTER_A_PREFIX}|" if known else ""
        self._keys = re.compile(begun + _LIKE_A_KEY)

    def text(self, agent: bytes) -> str:
        """The field as printable ASCII, truncated, without anything that may be a key."""
        text = self._keys.sub(HIDDEN, agent_text(agent))
        return _ENCODED.sub(self._encoded, text) if "%" in text else text

    def _encoded(self, word: re.Match[str]) -> str:
        """The word, unless decoding its escapes repeatedly reveals a key."""
        decoded = word[0]
        for _ in range(_MOST_ROUNDS):
            decoded = _ESCAPE.sub(_character, decoded)
        return HIDDEN if self._keys.search(decoded) else word[0]


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16))


_BATCH: Final = 1_000
"""Rows in one transaction, so that no other writer waits long."""
_AT_ONCE: Final = 500
"""Counters summed up between two turns of the loop: about a millisecond."""
_NETWORKS: Final = 16
"""Networks of one key: most that wait, and most that are remembered as written. More wait for the next sample."""

_Count = tuple[str, int, str, int, str]
"""Key id, hour, route, class, reason (empty if the request was served)."""
P = TypeVar("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUsed:
    """A key was allowed, and its last use has been written."""

    key_id: str
    use: LastUse
    earlier: Earlier


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalCount:
    """Requests were refused."""

    key_id: str
    """Empty if no key was recognised."""
    network: str
    address: str
    reason: Reason
    count: int
    at: int
    """Microseconds of the newest refusal."""


class _Waiting:
    """The newest use of a key, not written yet."""

    __slots__ = ("address", "agent", "at", "networks")

    def __init__(self) -> None:
        self.at = -1
        self.address = ""
        self.agent = b""
        self.networks: dict[str, None] = {}

    def now(self, at: int, address: str, agent: bytes) -> None:
        if at >= self.at:
            self.at, self.address, self.agent = at, address, agent

    def last_use(self, agents: UserAgents) -> LastUse:
        networks = tuple(self.networks)
        return LastUse(at=self.at, address=self.address, agent=agents.text(self.agent), networks=networks)


class UsageWriter:
    """Counts and last uses on their way into the store; a key's last use at most once in `sample_seconds`.

    A new network of a key is written immediately. At most `size` last uses and `size` counts wait: beyond that, the
    oldest uses are discarded and new counts are `dropped`, which happens only if the store is unavailable for that
    long.
    """

    def __init__(self, *, clock: Clock, sample_seconds: float = 60, size: int = 100_000) -> None:
        self.dropped = 0
        self.agents = UserAgents()
        self._clock = clock
        self._sample = int(sample_seconds * 1_000_000)
        self._size = size
        self._counts: dict[_Count, int] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._written: OrderedDict[str, tuple[int, tuple[str, ...]]] = OrderedDict()

    async def sum_up(self, hours: Sequence[UsageHour]) -> Sequence[RefusalCount]:
        """Take over the counts. Returns the refusals, which are not stored."""
        networks: dict[str, str] = {}
        for hour in hours:
            async for place, counter in _in_turns(hour.allowed):
                key_id, route, status_class, address, reason = place
                self._count((key_id, hour.at, route, status_class, reason), counter.count)
                self._use(key_id, counter, address, _network(address, networks))
        refused = []
        for hour in hours:
            async for (key_id, route, status_class, address, reason), counter in _in_turns(hour.refused):
                if key_id:
                    self._count((key_id, hour.at, route, status_class, reason.value), counter.count)
                network = _network(address, networks)
                at = int(counter.at * 1_000_000)
                refused.append(
                    RefusalCount(
                        key_id=key_id, network=network, address=address, reason=reason, count=counter.count, at=at
                    )
                )
        return refused

    async def write(self, sink: UsageSink, report: Callable[[KeyUsed], None], *, everything: bool = False) -> None:
        """Write every waiting count, and the last uses that are due (at the end of the process, all).

        `report` is called with each last use that was written.
        Raises StoreUnavailable; the rest is kept for the next call.
        """
        while batch := dict(islice(self._counts.items(), _BATCH)):
            await sink.add([_row(place, count) for place, count in batch.items()])
            for place in batch:
                del self._counts[place]
        await self._write_uses(sink, report, everything=everything)

    async def _write_uses(self, sink: UsageSink, report: Callable[[KeyUsed], None], *, everything: bool) -> None:
        now = self._clock.micros()
        due = [key_id for key_id, use in self._waiting.items() if everything or self._is_due(key_id, use, now)]
        for start in range(0, len(due), _BATCH):
            uses = {key_id: self._waiting[key_id].last_use(self.agents) for key_id in due[start : start + _BATCH]}
            earlier = await sink.touch(uses)
            for key_id, use in uses.items():
                self._settle(key_id, use, now)
            for key_id, found in earlier.items():
                report(KeyUsed(key_id=key_id, use=uses[key_id], earlier=found))

    def _count(self, place: _Count, count: int) -> None:
        counts = self._counts
        if place in counts:
            counts[place] += count
        elif len(counts) < self._size:
            counts[place] = count
        else:
            self.dropped += count

    def _use(self, key_id: str, counter: UsageCounter, address: str, network: str) -> None:
        waiting = self._waiting.get(key_id)
        if waiting is None:
            waiting = self._waiting[key_id] = _Waiting()
            if len(self._waiting) > self._size:
                del self._waiting[next(iter(self._waiting))]
        waiting.now(int(counter.at * 1_000_000), address, counter.agent)
        if network and len(waiting.networks) < _NETWORKS:
            waiting.networks[network] = None

    def _is_due(self, key_id: str, use: _Waiting, now: int) -> bool:
        written = self._written.get(key_id)
        if written is None:
            return True
        at, networks = written
        # Not below 0: the clock may have been set back.
        in_sample = 0 <= now - at < self._sample
        return not in_sample or (len(networks) < _NETWORKS and not use.networks.keys() <= set(networks))

    def _settle(self, key_id: str, use: LastUse, now: int) -> None:
        known = self._written.get(key_id, (0, ()))[1]
        self._written[key_id] = now, tuple(dict.fromkeys((*known, *use.networks)))[:_NETWORKS]
        self._written.move_to_end(key_id)
        while len(self._written) > self._size:
            self._written.popitem(last=False)
        del self._waiting[key_id]


async def _in_turns(counters: Mapping[P, UsageCounter]) -> AsyncIterator[tuple[P, UsageCounter]]:
    for number, entry in enumerate(counters.items(), start=1):
        yield entry
        if not number % _AT_ONCE:
            await asyncio.sleep(0)


def _network(address: str, known: dict[str, str]) -> str:
    found = known.get(address)
    if found is None:
        found = known[address] = network_of(address)
    return found


def _row(place: _Count, count: int) -> UsageRow:
    key_id, hour, route, status_class, reason = place
    return UsageRow(key_id=key_id, at=hour, route=route, status_class=status_class, count=count, reason=reason)
