"""Times, numbers and names as people say them."""

from datetime import UTC, datetime
from typing import Final

from sidecar.admin.web.view_models import Moment, Standing
from sidecar.core.model import ApiKey, KeyStatus, Quota
from sidecar.core.wording import counted

MICROSECONDS: Final = 1_000_000
_UNITS: Final = (("year", 31_536_000), ("month", 2_592_000), ("day", 86_400), ("hour", 3_600), ("minute", 60))


def moment(at: int, now: int) -> Moment:
    """`at` and `now` in microseconds."""
    when = datetime.fromtimestamp(at // MICROSECONDS, UTC)
    exact = f"{when:%Y-%m-%d %H:%M:%S} UTC"
    return Moment(said=_distance(at, now), exact=exact, machine=f"{when:%Y-%m-%dT%H:%M:%SZ}")


def moment_or_none(at: int | None, now: int) -> Moment | None:
    return None if at is None else moment(at, now)


def _distance(at: int, now: int) -> str:
    seconds = abs(now - at) // MICROSECONDS
    if seconds < 60:
        return "just now" if at <= now else "in less than a minute"
    unit, size = next((unit, size) for unit, size in _UNITS if seconds >= size)
    said = counted(seconds // size, unit)
    return f"{said} ago" if at <= now else f"in {said}"


def sentence(text: str) -> str:
    """`Is missing.` of `is missing`."""
    return f"{text[:1].upper()}{text[1:]}."


def percent(part: float, whole: float) -> int:
    """From 0 to 100; never 0 for something, never 100 for less than the whole."""
    if part <= 0 or whole <= 0:
        return 0
    return 100 if part >= whole else min(99, max(1, round(100 * part / whole)))


def part_said(part: int, whole: int) -> str:
    """`12% of them`."""
    if not part:
        return "none of them"
    return f"{percent(part, whole)}% of them" if part * 100 >= whole else "under 1% of them"


def span_of(seconds: int) -> str:
    """`24 hours`, `7 days`."""
    unit, size = next(((u, s) for u, s in _UNITS[2:] if seconds % s == 0), ("second", 1))
    return counted(seconds // size, unit)


def quota_said(quota: Quota, limit: int) -> str:
    """`10,000 per hour`."""
    period = quota.period if isinstance(quota.period, str) else span_of(quota.period).removeprefix("1 ")
    return f"{limit:,} per {period}"


def standing(key: ApiKey, now: int) -> Standing:
    """How `key` stands at `now` (microseconds)."""
    if key.status is KeyStatus.REVOKED:
        return Standing(kind="revoked", said="Revoked")
    if key.status is KeyStatus.DISABLED:
        return Standing(kind="disabled", said="Disabled")
    if key.expires_at is not None and key.expires_at <= now:
        return Standing(kind="expired", said="Expired")
    if key.retires_at is not None:
        if key.retires_at <= now:
            return Standing(kind="retired", said="Retired")
        return Standing(kind="retiring", said="Retiring")
    return Standing(kind="active", said="Active")


def standing_note(key: ApiKey, now: int) -> str:
    """What the standing means, where that needs a word."""
    match standing(key, now).kind:
        case "revoked":
            return "Every request with this key is refused, for ever."
        case "disabled":
            return "Every request with this key is refused until it is enabled again."
        case "expired":
            return "This key is past its expiry. Change the expiry, or issue a new key."
        case "retired":
            return "Another key has taken the place of this one, and the overlap is over."
        case "retiring":
            return "Another key has taken the place of this one. Both work until this one retires."
    return ""
