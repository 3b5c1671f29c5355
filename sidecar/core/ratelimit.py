"""Rate-limit fields of an answer: `X-RateLimit-*`, and draft-ietf-httpapi-ratelimit-headers-10 with `Retry-After`."""

from collections.abc import Sequence
from math import ceil
from typing import Literal

from sidecar.core.model import Headers, QuotaState
from sidecar.core.quota import policy_seconds


def rate_limit_headers(
    states: Sequence[QuotaState], *, x: bool, reset: Literal["unix", "delta"], ietf: bool, now: float
) -> Headers:
    """Fields that tell `states`; none for no states.

    `X-RateLimit-*` tell of the tightest quota: the fewest remaining, among equals the lowest limit. The IETF fields
    tell of every quota. With a refused state among them comes `Retry-After` (RFC 9110 §10.2.3), whatever is switched.
    """
    if not states:
        return ()
    fields: Headers = ()
    if x:
        fields = _x_fields(states[0] if len(states) == 1 else min(states, key=_tightness), reset, now)
    if ietf:
        fields += _ietf_fields(states, now)
    wait = max([state.retry_after_seconds for state in states])
    return (*fields, (b"Retry-After", b"%d" % wait)) if wait else fields


def _tightness(state: QuotaState) -> tuple[int, int]:
    return state.remaining, state.limit


def _x_fields(state: QuotaState, reset: Literal["unix", "delta"], now: float) -> Headers:
    at = ceil(state.resets_at) if reset == "unix" else _seconds_left(state, now)
    return (
        (b"X-RateLimit-Limit", b"%d" % state.limit),
        (b"X-RateLimit-Remaining", b"%d" % state.remaining),
        (b"X-RateLimit-Reset", b"%d" % at),
    )


def _ietf_fields(states: Sequence[QuotaState], now: float) -> Headers:
    policies, limits = [], []
    for state in states:
        name = _quoted(state.quota.name)
        policies.append(f"{name};q={state.limit};w={policy_seconds(state.quota, now)}")
        limits.append(f"{name};r={state.remaining};t={_seconds_left(state, now)}")
    return (
        (b"RateLimit-Policy", ", ".join(policies).encode("ascii")),
        (b"RateLimit", ", ".join(limits).encode("ascii")),
    )


def _seconds_left(state: QuotaState, now: float) -> int:
    return max(0, ceil(state.resets_at - now))


def _quoted(name: str) -> str:
    """A string of RFC 9651 §3.3.3, which holds printable ASCII only; `?` stands for all else."""
    if name.isidentifier() and name.isascii():
        return f'"{name}"'
    printable = "".join(c if " " <= c <= "~" else "?" for c in name)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
