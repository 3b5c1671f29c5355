"""Which scopes a key needed recently, judging by its stored counts."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sidecar.config.build.config import Config
from sidecar.core.model import ApiKey
from sidecar.core.units import counted
from sidecar.rehearsal.suggestions.suggest import KeySuggestion, Record, Suggestions, change_command
from sidecar.rehearsal.suggestions.use import Use
from sidecar.store.usage import StoredUsage
from sidecar.usage.recorder import DAY, UsageTotal

_DAYS: Final = 90
_MICROSECONDS: Final = 1_000_000
_FEW_STEPS: Final = 200
"""Fewer steps than elsewhere, because a person waits for the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeUse:
    """The suggestion for one key, and the period of its use (microseconds)."""

    suggestion: KeySuggestion
    since: int
    until: int

    @property
    def days(self) -> str:
        return counted(max(1, round((self.until - self.since) / DAY)), "day")

    @property
    def sentence(self) -> str:
        """`Has 4 scopes, used 1 in 90 days`, and what follows from it."""
        one = self.suggestion
        number = len(one.key.scopes)
        held = f"{counted(number, 'scope')}{f' ({one.holds} with all included)' if one.holds > number else ''}"
        match one.verdict:
            case "narrow" | "fits":
                return f"Has {held}, used {len(one.used)} in {self.days}"
            case "too_early":
                return f"Too early to say: {one.why}"
            case "unused":
                return f"Has {held}, used none in {self.days}: {one.why}"
            case "undecided":
                return f"Cannot be told: {one.why}"

    @property
    def command(self) -> str | None:
        """The command that narrows the key; None if it needs all its scopes."""
        one = self.suggestion
        return change_command(one.key.id, one.needed) if one.verdict == "narrow" else None


async def scope_use(usage: StoredUsage, config: Config, key: ApiKey, *, now: int, kept: bool) -> ScopeUse:
    """now: microseconds. kept: whether the use of keys is kept at all. Raises StoreUnavailable."""
    since = max(now - _DAYS * DAY, now - int(config.usage.keep_seconds * _MICROSECONDS))
    record = Record(since=since, until=now, complete=kept, with_public=False, with_last_use=kept)
    totals = await usage.totals([key.id], since=since, until=now)
    # With hundreds of routes and scopes it takes tens of milliseconds, and requests must not wait for it.
    suggestion = await asyncio.to_thread(_suggestion, config, record, key, totals)
    return ScopeUse(suggestion=suggestion, since=since, until=now)


def _suggestion(config: Config, record: Record, key: ApiKey, totals: Iterable[UsageTotal]) -> KeySuggestion:
    use = Use(config)
    use.add_key(key)
    for total in totals:
        use.add_total(total)
    return Suggestions(config, record, now=record.until, most_steps=_FEW_STEPS).of_key(key, use.of(key.id))
