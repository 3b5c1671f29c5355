"""What the script of `take.lua` is called with, and quota states from what it answers. Pure; asks no server."""

from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

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

TEXT: Final = files(__package__).joinpath("take.lua").read_text(encoding="utf-8")

FORMAT: Final = 1
"""Of what is stored; part of each key, so that versions that store otherwise count apart."""

_SECOND: Final = 1_000_000
_FIRST: Final = 3
"""Where the first bucket's list stands in a reply."""
_MOST_KNOWN: Final = 4096
_SKEW_SECONDS: Final = 1.0
"""Clocks that differ by less are taken as one, so that the end of a fixed window is told as a full second."""

Reply = list[Any]
"""1 if refused, seconds and microseconds of the server's clock, a list of ints for each bucket."""


class Script:
    """The script as commands for one namespace, which is every key's hash tag, so that a Cluster holds all together."""

    def __init__(self, namespace: str, text: str = TEXT) -> None:
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._prefix = f"{{{namespace}}}:{FORMAT}:"
        self._known: dict[tuple[str, int, int], tuple[Quota, str, tuple[str | int, ...]]] = {}
        """By quota's name, limit and cost: the quota, what its keys begin with, and the arguments."""

    @property
    def load(self) -> tuple[str, ...]:
        return ("SCRIPT", "LOAD", self.text)

    @property
    def any_key(self) -> str:
        """A key in the slot of all of them."""
        return f"{self._prefix}probe"

    @property
    def probe(self) -> tuple[str | int, ...]:
        """Takes from a count that nobody asks for: a server that cannot write does not pass."""
        return ("EVALSHA", self.sha, 1, self.any_key, 1, "f", 60, 1, 10**15, 0)

    def call(self, buckets: Sequence[Bucket], *, take: bool) -> list[str | int]:
        """The command for buckets of which no two are of one quota and subject."""
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
    """Whether it has the script's form. What is no Redis, or one that mixes connections up, answers otherwise."""
    return answered.__class__ is list and len(answered) > _FIRST and answered[_FIRST].__class__ is list


def taken_of(buckets: Sequence[Bucket], reply: Reply, now: float, *, take: bool) -> Taken:
    """States from the script's reply to `buckets`. `now` is the caller's clock, by which the reset is told."""
    refused, seconds, rest = reply[:3]
    there = seconds + rest / _SECOND
    states = [_state(bucket, reply[i], there, take=take and not refused) for i, bucket in enumerate(buckets, 3)]
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
    """Parts told apart by their lengths: no name can be mistaken for two others."""
    return "".join([f"{len(part)}:{part}" for part in parts])
