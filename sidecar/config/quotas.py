"""The `quotas` and `plans` sections, and the quotas that other sections name."""

from collections.abc import Mapping, Sequence

from sidecar.config.document import Allowance, ChargeEntry, Document, QuotaEntry, given
from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.config.fields import parse_period
from sidecar.core.model import Charge, Quota, Subject, Window

FAILURES = "failures"
"""The name of the quota for wrong keys."""

_DAY_SECONDS = 86400


def quotas_of(document: Document, report: Report) -> dict[str, Quota]:
    quotas = {}
    for name, entry in (document.quotas or {}).items():
        path: Path = ("quotas", name)
        if name == FAILURES:
            report.key_problem(path, f"is the name of the quota in keys.{FAILURES}: choose another")
        quotas[name] = _quota(name, entry, path, report)
    return quotas


def failures_of(entry: Allowance | str, path: Path, report: Report) -> Quota | None:
    """The quota by address for wrong keys; None for `off`."""
    if isinstance(entry, str):
        return None
    _check_window(entry, path, report)
    return _made(FAILURES, entry, (Subject.ADDRESS,))


def plans_of(document: Document, report: Report) -> Mapping[str, Mapping[str, int]]:
    plans = document.plans or {}
    known = report.names(("quotas",))
    for plan, limits in plans.items():
        for name in limits:
            if name not in known:
                report.key_problem(("plans", plan, name), f"unknown quota '{name}'{did_you_mean(name, known)}")
    return plans


def charges_of(
    entries: Sequence[str | ChargeEntry], path: Path, quotas: Mapping[str, Quota], report: Report
) -> tuple[Charge, ...]:
    """What a route counts; each quota once."""
    known = report.names(("quotas",))
    charges: dict[str, Charge] = {}
    for at, entry in report.numbered(path, entries):
        name, cost = (entry, 1) if isinstance(entry, str) else (entry.quota, entry.cost)
        if name not in known:
            report.problem(at, f"unknown quota '{name}'{did_you_mean(name, known)}")
        elif name in charges:
            report.problem(at, f"the quota '{name}' stands here twice")
        elif name in quotas:
            charges[name] = Charge(quota=quotas[name], cost=cost)
    return tuple(charges.values())


def _quota(name: str, entry: QuotaEntry, path: Path, report: Report) -> Quota:
    by = (entry.by,) if isinstance(entry.by, Subject) else entry.by
    if len(set(by)) < len(by):
        report.problem((*path, "by"), "names something twice")
    if entry.only == "anonymous" and {Subject.KEY, Subject.TENANT} & set(by):
        report.problem((*path, "only"), "an anonymous request has no key and no tenant to count by: use by: address")
    _check_window(entry, path, report)
    return _made(name, entry, by, entry.only)


def _made(name: str, entry: Allowance, by: tuple[Subject, ...], only: str = "all") -> Quota:
    return Quota(
        name=name,
        limit=entry.limit,
        period=parse_period(entry.per),
        window=entry.window,
        burst=given(entry.burst),
        by=by,
        only=only,  # type: ignore[arg-type]  # the document's type admits the same three words
    )


def _check_window(entry: Allowance, path: Path, report: Report) -> None:
    period = parse_period(entry.per)
    if given(entry.burst) is not None and entry.window is not Window.BUCKET:
        report.problem((*path, "burst"), "only a bucket has a burst: add window: bucket, or leave it out")
    if entry.window is Window.FIXED and isinstance(period, int) and _DAY_SECONDS % period:
        message = "a fixed window must divide a day evenly: choose such a duration, a calendar unit, or window: sliding"
        report.problem((*path, "per"), message)
