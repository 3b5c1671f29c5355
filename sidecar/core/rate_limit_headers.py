"""Rate-limit fields of an answer: `X-RateLimit-*`, and draft-ietf-httpapi-ratelimit-headers-10 with `Retry-After`."""

from collections.abc import Sequence
from email.utils import formatdate
from math import ceil
from typing import Literal

from sidecar.core.model import ApiKey, Headers, QuotaState, Window
from sidecar.core.quotas import policy_seconds

# What an answer tells a caller whose key has been replaced.


def ending_fields(key: ApiKey) -> Headers:
    """Since when the key should not be used (RFC 9745), and when it stops working (RFC 8594); none while it lasts."""
    if key.replaced_at is None or key.retires_at is None:
        return ()
    sunset = formatdate(key.retires_at // 1_000_000, usegmt=True)
    return ((b"Deprecation", b"@%d" % (key.replaced_at // 1_000_000)), (b"Sunset", sunset.encode()))


ENDING_NAMES = ("Deprecation", "Sunset")

_MAX_POLICIES = 4096


class RateLimitFields:
    """Tells quota states, in the sets that are switched on.

    x: `X-RateLimit-*`, which tell of the tightest quota: the fewest remaining, among equals the lowest limit; `reset`
    as Unix seconds or as seconds from now. ietf: fields that tell of every quota.
    """

    def __init__(self, *, x: bool, reset: Literal["unix", "delta"], ietf: bool) -> None:
        self._x, self._reset, self._ietf = x, reset, ietf
        self._policies: dict[tuple[str, int], tuple[bytes, bytes]] = {}
        """By name and limit of a quota: its name as a string of the field, and its item of the policy."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the fields that may come."""
        x = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset") if self._x else ()
        return (*x, *(("RateLimit-Policy", "RateLimit") if self._ietf else ()), "Retry-After")

    def __call__(self, states: Sequence[QuotaState], *, now: float) -> Headers:
        """None for no states. With a refused one among them comes `Retry-After` (RFC 9110 §10.2.3), always."""
        if not states:
            return ()
        tightest = states[0] if len(states) == 1 else min(states, key=_tightness)
        fields: Headers = self._x_fields(tightest, now) if self._x else ()
        if self._ietf:
            fields += self._ietf_fields(states, now)
        wait = tightest.retry_after_seconds if len(states) == 1 else max([each.retry_after_seconds for each in states])
        return (*fields, (b"Retry-After", b"%d" % wait)) if wait else fields

    def _x_fields(self, state: QuotaState, now: float) -> Headers:
        at = ceil(state.resets_at) if self._reset == "unix" else _seconds_left(state, now)
        return (
            (b"X-RateLimit-Limit", b"%d" % state.limit),
            (b"X-RateLimit-Remaining", b"%d" % state.remaining),
            (b"X-RateLimit-Reset", b"%d" % at),
        )

    def _ietf_fields(self, states: Sequence[QuotaState], now: float) -> Headers:
        policies, limits = [], []
        for state in states:
            name, policy = self._policies.get((state.quota.name, state.limit)) or self._policy(state, now)
            policies.append(policy)
            limits.append(b"%b;r=%d;t=%d" % (name, state.remaining, _seconds_left(state, now)))
        return ((b"RateLimit-Policy", b", ".join(policies)), (b"RateLimit", b", ".join(limits)))

    def _policy(self, state: QuotaState, now: float) -> tuple[bytes, bytes]:
        name = _quoted(state.quota.name)
        field = (name, b"%b;q=%d;w=%d" % (name, state.limit, policy_seconds(state.quota, now)))
        if state.quota.window is Window.FIXED and state.quota.period == "month":
            return field  # Another length each month.
        if len(self._policies) >= _MAX_POLICIES:
            self._policies.clear()
        self._policies[state.quota.name, state.limit] = field
        return field


def _tightness(state: QuotaState) -> tuple[int, int]:
    return state.remaining, state.limit


def _seconds_left(state: QuotaState, now: float) -> int:
    return max(0, ceil(state.resets_at - now))


def _quoted(name: str) -> bytes:
    """A string of RFC 9651 §3.3.3, which holds printable ASCII only; `?` stands for all else."""
    printable = "".join(c if " " <= c <= "~" else "?" for c in name)
    return b'"%b"' % printable.replace("\\", "\\\\").replace('"', '\\"').encode("ascii")
