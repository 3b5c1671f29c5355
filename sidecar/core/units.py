"""Durations (`15m`) and sizes (`64KiB`) as people write them."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Protocol, overload


class Clock(Protocol):
    """Time, for all code that needs it. Nothing else reads the machine's clock."""

    def seconds(self) -> float:
        """Unix seconds."""

    def micros(self) -> int:
        """Unix microseconds."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, which never decrease: for durations."""


# Microseconds of UTC since 1970 to RFC 3339, and back.


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_WITHOUT_ZONE = _EPOCH.replace(tzinfo=None)
"""Formats in half the time."""
_MICROSECOND = timedelta(microseconds=1)


@overload
def rfc3339(at: int) -> str: ...
@overload
def rfc3339(at: None) -> None: ...
@overload
def rfc3339(at: int | None) -> str | None: ...
def rfc3339(at: int | None) -> str | None:
    """With `Z`, and without a fraction if the seconds are whole."""
    if at is None:
        return None
    return f"{(_EPOCH_WITHOUT_ZONE + timedelta(microseconds=at)).isoformat()}Z"


_DAY: Final = (
    "[1-9][0-9]{3}-"
    "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_LEAP_DAY: Final = "([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29"
_CLOCK: Final = r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
RFC3339_TIME: Final = f"({_DAY}|{_LEAP_DAY}){_CLOCK}"
"""A regular expression for times with an offset, from the year 1000 on, without leap seconds."""


def microseconds(text: str) -> int:
    """Microseconds of a time in RFC 3339, or of 00:00 UTC of a date. Raises ValueError."""
    found = datetime.fromisoformat(text)
    try:
        return ((found if found.tzinfo else found.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
    except OverflowError as error:
        raise ValueError(str(error)) from error


# Numbers in a sentence.


def counted(number: int, noun: str) -> str:
    """`1 key`, `2,000 keys`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def json_type(value: object) -> str:
    """`a string`: what a value of JSON is, for an error message."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case dict():
            return "an object"
        case _:
            return "a list"


def to_the_millisecond(at: float) -> str:
    """Unix seconds in RFC 3339, as written in logs."""
    seconds, milliseconds = divmod(int(at * 1000), 1000)
    return f"{_to_the_second(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=8)
def _to_the_second(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

DURATION_PATTERN = "^[0-9]{1,9}(ms|s|m|h|d)$"
SIZE_PATTERN = "^[0-9]{1,9}(B|KiB|MiB|GiB|TiB)$"

_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_SIZE = re.compile(r"([0-9]{1,9})(B|KiB|MiB|GiB|TiB)")
_LIKE_SIZE = re.compile(r"([0-9]{1,9}) ?([kmgt]?)i?b?", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Seconds. Raises ValueError with what to write instead."""
    found = _DURATION.fullmatch(text)
    if found is None:
        hint = f" (did you mean '{text}s'?)" if re.fullmatch("[0-9]{1,9}", text) else ""
        raise ValueError(f"must be a number with its unit, such as 500ms, 2s, 15m, 24h or 90d{hint}")
    return int(found[1]) * _SECONDS[found[2]]


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError with what to write instead."""
    found = _SIZE.fullmatch(text)
    if found is None:
        like = _LIKE_SIZE.fullmatch(text)
        unit = f"{like[2].upper()}iB" if like and like[2] else "B"
        hint = f" (did you mean '{like[1]}{unit}'?)" if like else ""
        raise ValueError(f"must be a number with its unit, such as 512B, 64KiB or 1MiB{hint}")
    return int(found[1]) * _BYTES[found[2]]
