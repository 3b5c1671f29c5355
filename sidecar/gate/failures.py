"""Wrong keys by address, and which lookups an address that sent too many of them still gets."""

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from sidecar.core.client_address import address_subject
from sidecar.core.errors import Denied, Fault, Reason
from sidecar.core.model import Bucket, Quota, Subject, Taken, Window
from sidecar.keys.cache import CacheEntry
from sidecar.limiter.port import Limiter

_NOTHING: Final = Taken(states=())
_ALL: Final = Quota(name="failures/all", limit=500, burst=1000, period=1, window=Window.BUCKET, by=())
"""Lookups of keys that are not cached, shared by all addresses that used up their failures.

A valid key gets through, at once or after some tries. A bucket, because a client that tries once a second would always
be too late for a window that others use up. No configured quota can have such a name.
"""
_EACH: Final = Quota(name="failures/each", limit=50, burst=300, period=1, window=Window.BUCKET, by=(Subject.ADDRESS,))
"""For one of these addresses, so that it leaves some to the others."""
_MOST_UNDER_WAY: Final = 64
"""Most such lookups at a time, for all addresses: if the store is slow, other requests must not wait behind them."""
_MOST_KNOWN: Final = 4096
_LOOKUP_SECONDS: Final = 0.01
"""How long a refused lookup stays refused: half the time after which _EACH allows one more."""


class _Known(NamedTuple):
    """A refusal that lasts from `since` until `until`, unless the clock is set back."""

    since: float
    until: float
    taken: Taken = _NOTHING

    def holds(self, now: float) -> bool:
        return self.since <= now < self.until


class Failures:
    """Counts wrong keys by address, and protects the store from addresses with too many (`keys.failures`).

    A flood from one address costs little: its refusal is remembered until the value of Retry-After changes.
    quota: None is no limit. Times are Unix seconds.
    """

    def __init__(self, quota: Quota | None, limiter: Limiter) -> None:
        self._quota, self._limiter = quota, limiter
        self._under_way = 0
        self._used_up: dict[str, _Known] = {}
        self._refused_lookups: dict[str, _Known] = {}

    async def count(self, address: str, now: float) -> Taken:
        """Count a wrong key. Only reports that the address has no failures left, not how many it has. Raises Fault."""
        if self._quota is None:
            return _NOTHING
        taken = await self._limiter.take([_bucket(self._quota, address_subject(address))], now)
        return Taken(states=(), refused=taken.refused)

    def count_now(self, address: str, now: float) -> Taken:
        """As `count`. If that would have to wait, nothing is counted, as if the limiter were unavailable."""
        if self._quota is None:
            return _NOTHING
        known = self._used_up.get(address)
        if known is not None and known.holds(now):
            return known.taken
        taken = self._limiter.take_now([_bucket(self._quota, address_subject(address))], now)
        if taken is None or taken.refused is None:
            return _NOTHING
        refused = Taken(states=(), refused=taken.refused)
        if self._quota.window is Window.FIXED:
            until = taken.refused.resets_at - (taken.refused.retry_after_seconds - 1)
            _learn(self._used_up, address, _Known(now, until, refused))
        return refused

    def refuse_lookup(self, address: str, now: float) -> bool:
        """Whether `look_up` would refuse now, as far as that is known without waiting. Nothing is taken."""
        known = self._refused_lookups.get(address)
        if known is not None and known.holds(now):
            return True
        if self._quota is None or not self._has_used_up(self._quota, address, now):
            return False
        subject = address_subject(address)
        if (
            self._under_way < _MOST_UNDER_WAY
            and not self._is_empty_now(_bucket(_ALL), now)
            and not self._is_empty_now(_bucket(_EACH, subject), now)
        ):
            return False
        _learn(self._refused_lookups, address, _Known(now, now + _LOOKUP_SECONDS))
        return True

    def _has_used_up(self, quota: Quota, address: str, now: float) -> bool:
        known = self._used_up.get(address)
        if known is not None and known.holds(now):
            return True
        return self._is_empty_now(_bucket(quota, address_subject(address)), now)

    async def look_up(
        self, address: str, now: float, find: Callable[[], Awaitable[CacheEntry | None]]
    ) -> CacheEntry | None:
        """The result of `find`.

        Raises Denied, without calling it, if the address has failed and looked up too often.
        """
        subject = address_subject(address)
        if self._quota is None or not await self._is_empty(_bucket(self._quota, subject), now):
            return await find()
        if self._under_way >= _MOST_UNDER_WAY or not await self._take_lookup(subject, now):
            raise Denied(Reason.TOO_MANY_FAILURES)
        self._under_way += 1
        try:
            return await find()
        finally:
            self._under_way -= 1

    async def _take_lookup(self, subject: str, now: float) -> bool:
        taken = await self._limiter.take([_bucket(_ALL), _bucket(_EACH, subject)], now)
        return taken.refused is None

    async def _is_empty(self, bucket: Bucket, now: float) -> bool:
        try:
            return (await self._limiter.peek([bucket], now)).refused is not None
        except Fault:
            # As always with failures: if they cannot be counted, nobody is refused.
            return False

    def _is_empty_now(self, bucket: Bucket, now: float) -> bool:
        try:
            peeked = self._limiter.peek_now([bucket], now)
        except Fault:
            return False
        return peeked is not None and peeked.refused is not None


def _bucket(quota: Quota, *subject: str) -> Bucket:
    return Bucket(quota=quota, subject=subject, limit=quota.limit)


def _learn(memory: dict[str, _Known], address: str, known: _Known) -> None:
    if len(memory) >= _MOST_KNOWN:
        memory.clear()
    memory[address] = known
