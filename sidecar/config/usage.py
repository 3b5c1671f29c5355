"""The `usage` section: how long use is kept by the hour and by the day, and what of it is unusual."""

from typing import Annotated, Final, Literal

from msgspec import Meta

from sidecar.config.entry import Entry
from sidecar.config.errors import Report
from sidecar.config.fields import Duration, DurationOrOff, Timeout
from sidecar.config.settings import UsageSettings
from sidecar.core.units import parse_duration
from sidecar.usage.anomalies import Unusual

_DAY_SECONDS: Final = 86_400


class RefusalsEntry(Entry, frozen=True, kw_only=True):
    """So many refusals of one key, or of one network, within this time."""

    limit: Annotated[int, Meta(ge=1, le=10**9)] = 100
    within: Timeout = "1m"


class UnusualEntry(Entry, frozen=True, kw_only=True):
    """What is told of as unusual."""

    unused: DurationOrOff = "30d"
    new_network: bool = True
    refusals: RefusalsEntry | Literal["off"] = RefusalsEntry()
    quiet: Duration = "1h"


class UsageEntry(Entry, frozen=True, kw_only=True):
    """How long use is kept, and what of it is unusual."""

    hours: Timeout = "14d"
    keep: Timeout = "90d"
    unusual: UnusualEntry = UnusualEntry()


def usage_of(entry: UsageEntry, report: Report) -> UsageSettings:
    hours_seconds, keep_seconds = parse_duration(entry.hours), parse_duration(entry.keep)
    if hours_seconds < _DAY_SECONDS:
        report.problem(("usage", "hours"), "must be at least 1d: what is older is summed up by the day")
    if keep_seconds < hours_seconds:
        report.problem(("usage", "keep"), f"must not be shorter than usage.hours, which is {entry.hours}")
    return UsageSettings(hours_seconds=hours_seconds, keep_seconds=keep_seconds, unusual=_unusual(entry.unusual))


def _unusual(entry: UnusualEntry) -> Unusual:
    refusals = None if isinstance(entry.refusals, str) else entry.refusals
    return Unusual(
        unused_seconds=None if entry.unused == "off" else parse_duration(entry.unused),
        new_network=entry.new_network,
        refusals=refusals.limit if refusals else None,
        refusals_seconds=parse_duration(refusals.within) if refusals else 60.0,
        quiet_seconds=parse_duration(entry.quiet),
    )
