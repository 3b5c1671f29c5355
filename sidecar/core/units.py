"""Durations (`15m`) and sizes (`64KiB`) as people write them."""

import re

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
