"""A remote limiter: its errors, its statistics, and the decisions while it is unavailable."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal, get_args

from msgspec.structs import replace as struct_with

from sidecar.core.errors import Fault, Reason
from sidecar.core.model import Bucket, Quota, QuotaState, Subject, Taken
from sidecar.limiter.memory import counted_for
from sidecar.limiter.shared import EmbeddedLimiter

Cause = Literal["timeout", "connection", "auth", "loading", "readonly", "memory", "cluster", "script"]
"""Why it was unavailable. `script`: any other error in a reply."""
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)

Outage = Literal["local", "open", "closed"]
"""What decides meanwhile: this replica's share of each quota, no quota, or nothing (a fault)."""

Breaker = Literal["closed", "half_open", "open"]
"""Closed: it is used. Half open: it is tried, and nothing waits for it. Open: it is not used for some time."""
BREAKERS: Final[tuple[Breaker, ...]] = get_args(Breaker)

Decided = Literal["allowed", "refused", "fault"]

LATENCIES: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds of the histogram, in seconds."""


_MOST_SHARES: Final = 4096
_MOST_SEEN: Final = 100
_LITTLE: Final = 0.2
"""The share of a limit."""


class Unavailable(Exception):
    """It cannot be used now. `cause` is bounded; `problem` is for people, and contains no secret."""

    def __init__(self, cause: Cause, problem: str) -> None:
        super().__init__(problem)
        self.cause: Cause = cause

    @classmethod
    def of(cls, cause: Cause, error: BaseException) -> "Unavailable":
        """With the words of `error` in one line of bounded length."""
        return cls(cause, " ".join(str(error).split())[:300] or type(error).__name__)


class RemoteStatistics:
    """What happened since the start."""

    def __init__(self) -> None:
        self.breaker: Breaker = "open"
        self.problem = ""
        """Why it is not used now; empty while it is."""
        self.errors: Counter[Cause] = Counter(dict.fromkeys(CAUSES, 0))
        self.fallbacks: Counter[Decided] = Counter({"allowed": 0, "refused": 0, "fault": 0})
        self.latencies = [0] * (len(LATENCIES) + 1)
        self.latency_sum = 0.0

    def answered(self, seconds: float) -> None:
        self.latencies[bisect_left(LATENCIES, seconds)] += 1
        self.latency_sum += seconds


class Fullest:
    """Keys, tenants and environments that recently had little left. Shared counts can only be read one at a time."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Subject, str], None] = {}

    def see(self, bucket: Bucket, state: QuotaState) -> None:
        """Remember the subject of the state if most of the limit is used."""
        if state.remaining > _LITTLE * state.limit:
            return
        by = counted_for(bucket.quota)
        if by is not None:
            subject = by, bucket.subject[bucket.quota.by.index(by)]
            self._seen.pop(subject, None)
            self._seen[subject] = None
            if len(self._seen) > _MOST_SEEN:
                del self._seen[next(iter(self._seen))]

    def latest(self, most: int) -> list[tuple[Subject, str]]:
        """May run in another thread."""
        return list(self._seen)[::-1][:most]


class OutageLimiter:
    """Decides while the shared counts are unavailable, as `outage` says.

    local: this replica's share of each quota: the limit divided by `replicas`, and at least one request. All replicas
    together then allow one limit, plus at most one request each. counts: where a replica counts its share; shared by
    its workers, so that they have one share together.
    """

    def __init__(self, outage: Outage, counts: EmbeddedLimiter, *, replicas: int, statistics: RemoteStatistics) -> None:
        self._outage, self._counts = outage, counts
        self._replicas, self._statistics = replicas, statistics
        self._shares: dict[tuple[str, int, int], tuple[Quota, Bucket]] = {}

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        """Raises Fault if `outage` is `closed`."""
        try:
            taken = await self._decided(buckets, now, take=True)
        except Fault:
            self._statistics.fallbacks["fault"] += 1
            raise
        self._statistics.fallbacks["refused" if taken.refused else "allowed"] += 1
        return taken

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        """Raises Fault, as `take`."""
        return await self._decided(buckets, now, take=False)

    async def _decided(self, buckets: Sequence[Bucket], now: float, *, take: bool) -> Taken:
        if self._outage == "local":
            shares = [self._share(bucket) for bucket in buckets]
            return await (self._counts.take(shares, now) if take else self._counts.peek(shares, now))
        if self._outage == "open":
            return Taken(states=())
        raise Fault(Reason.LIMITER_UNAVAILABLE)

    def _share(self, bucket: Bucket) -> Bucket:
        """Equal buckets share one quota object, by which the counts find their table quickly."""
        name = (bucket.quota.name, bucket.limit, bucket.cost)
        known = self._shares.get(name)
        if known is None or known[0] is not bucket.quota:
            if len(self._shares) >= _MOST_SHARES:
                self._shares.clear()
            known = self._shares[name] = (bucket.quota, self._new_share(bucket))
        return struct_with(known[1], subject=bucket.subject)

    def _new_share(self, bucket: Bucket) -> Bucket:
        quota = bucket.quota
        if quota.burst is not None:
            quota = replace(quota, burst=self._part(quota.burst, bucket.cost))
        return struct_with(bucket, quota=quota, limit=self._part(bucket.limit, bucket.cost))

    def _part(self, whole: int, cost: int) -> int:
        return max(whole // self._replicas, min(whole, max(1, cost)))
