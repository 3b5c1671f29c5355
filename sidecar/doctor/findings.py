"""The findings that checks make of the facts about an installation. A finding never contains a secret.

A file of its own: what prints findings needs no facts, and `sidecar serve` neither.
"""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How serious a finding is. UNCHECKED: the check could not run."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found and, unless it is ok, why it matters and what to do."""

    severity: Severity
    saw: str
    why: str = ""
    do: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A finding, with the name of its check and the group of that check."""

    group: str
    check: str
    finding: Finding


def ok(saw: str) -> Finding:
    return Finding(severity=Severity.OK, saw=saw)


def warning(saw: str, *, why: str, do: str) -> Finding:
    return Finding(severity=Severity.WARNING, saw=saw, why=why, do=do)


def problem(saw: str, *, why: str, do: str) -> Finding:
    return Finding(severity=Severity.PROBLEM, saw=saw, why=why, do=do)


def unchecked(saw: str, *, do: str = "") -> Finding:
    return Finding(severity=Severity.UNCHECKED, saw=saw, do=do)


def span(seconds: float) -> str:
    """Format a duration, without its sign, as `3d`, `2h`, `5m`, `8s`, `1.5ms` or `40µs`."""
    size = abs(seconds)
    if size < 0.001:
        return f"{size * 1_000_000:.0f}µs"
    if size < 1:
        return f"{size * 1000:.1f}ms"
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if size >= 2 * length:
            return f"{size / length:.0f}{unit}"
    return f"{size:.0f}s"
