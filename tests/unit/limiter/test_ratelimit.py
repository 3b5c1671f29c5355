"""Rate-limit fields, as bytes on the wire."""

from typing import Literal

import pytest

from sidecar.core.model import Quota, QuotaState
from sidecar.core.quotas import RateLimitFields

NOW = 1_772_366_400.0


def state(name: str = "general", limit: int = 10_000, remaining: int = 9_999, **values: float) -> QuotaState:
    quota = Quota(name=name, limit=limit, period="hour")
    return QuotaState(quota=quota, limit=limit, remaining=remaining, **{"resets_at": NOW + 1234, **values})


def fields(
    *states: QuotaState,
    x: bool = True,
    reset: Literal["unix", "delta"] = "unix",
    ietf: bool = True,
    now: float = NOW,
) -> dict[bytes, bytes]:
    made = RateLimitFields(x=x, reset=reset, ietf=ietf)(states, now=now)
    assert len(dict(made)) == len(made)
    return dict(made)


def test_one_quota_fills_both_sets() -> None:
    assert fields(state()) == {
        b"X-RateLimit-Limit": b"10000",
        b"X-RateLimit-Remaining": b"9999",
        b"X-RateLimit-Reset": b"1772367634",
        b"RateLimit-Policy": b'"general";q=10000;w=3600',
        b"RateLimit": b'"general";r=9999;t=1234',
    }


def test_each_set_can_be_switched_off() -> None:
    assert set(fields(state(), ietf=False)) == {b"X-RateLimit-Limit", b"X-RateLimit-Remaining", b"X-RateLimit-Reset"}
    assert set(fields(state(), x=False)) == {b"RateLimit-Policy", b"RateLimit"}
    assert fields(state(), x=False, ietf=False) == {}


def test_without_a_quota_there_is_no_field() -> None:
    assert fields() == {}


def test_reset_can_be_seconds_from_now() -> None:
    assert fields(state(), reset="delta")[b"X-RateLimit-Reset"] == b"1234"


def test_a_reset_between_seconds_is_rounded_up() -> None:
    made = fields(state(resets_at=NOW + 1.25), now=NOW + 0.5)
    assert made[b"X-RateLimit-Reset"] == b"1772366402"
    assert made[b"RateLimit"].endswith(b";t=1")


def test_a_reset_in_the_past_is_reported_as_zero() -> None:
    made = fields(state(resets_at=NOW - 5), reset="delta")
    assert made[b"X-RateLimit-Reset"] == b"0"
    assert made[b"RateLimit"].endswith(b";t=0")


@pytest.mark.parametrize(
    "states",
    [
        (state("wide", 100, 50), state("tight", 1000, 3), state("full", 10, 10)),
        (state("wide", 100, 3), state("tight", 50, 3)),
    ],
)
def test_the_tightest_quota_fills_the_x_fields(states: tuple[QuotaState, ...]) -> None:
    made = fields(*states)
    tight = next(one for one in states if one.quota.name == "tight")
    assert made[b"X-RateLimit-Limit"] == b"%d" % tight.limit
    assert made[b"X-RateLimit-Remaining"] == b"3"


def test_the_ietf_fields_list_every_quota() -> None:
    made = fields(state("a", 10, 5), state("b", 20, 6))
    assert made[b"RateLimit-Policy"] == b'"a";q=10;w=3600, "b";q=20;w=3600'
    assert made[b"RateLimit"] == b'"a";r=5;t=1234, "b";r=6;t=1234'


@pytest.mark.parametrize(
    ("name", "written"),
    [("per-minute", b'"per-minute"'), ('a"b', b'"a\\"b"'), ("a\\b", b'"a\\\\b"'), ("é\r\nX: y", b'"???X: y"')],
)
def test_names_are_strings_of_structured_fields(name: str, written: bytes) -> None:
    assert fields(state(name))[b"RateLimit"].partition(b";")[0] == written


def test_a_refusal_reports_the_longest_wait_whatever_headers_are_enabled() -> None:
    states = (state("a", 5, 0, retry_after_seconds=7), state("b", 5, 0, retry_after_seconds=30), state("c"))
    assert fields(*states, x=False, ietf=False) == {b"Retry-After": b"30"}
    assert fields(*states)[b"Retry-After"] == b"30"


def test_a_successful_response_reports_no_wait() -> None:
    assert b"Retry-After" not in fields(state())
