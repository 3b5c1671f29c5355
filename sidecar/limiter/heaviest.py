"""Who has used most of a quota: a first sieve, because the limit of each subject is not known here."""

from collections.abc import Iterable
from heapq import nlargest
from typing import Any, Final

from sidecar.core.model import Quota, Subject, Window
from sidecar.core.quotas import micros, period_seconds
from sidecar.limiter.tables import Table

_WORTH_TELLING: Final = 0.5
"""Of the quota's own limit; a plan may give more, and hardly ever gives less than this."""


def heaviest_keys(tables: Iterable[Table[Any]], *, most: int) -> list[str]:
    """Ids of the keys with the largest counts, at most `most` of each quota by key.

    May run in another thread; counts that are past, and not yet let go, may be among them.
    """
    found: dict[str, None] = {}
    for table in tables:
        quota = table.quota
        if quota.by != (Subject.KEY,):
            continue
        used = ((_used(quota, counted), subject[0]) for subject, counted in table.all_held().items())
        full = ((count, key_id) for count, key_id in used if count >= _WORTH_TELLING * quota.limit)
        found.update(dict.fromkeys(key_id for _, key_id in nlargest(most, full)))
    return list(found)


def _used(quota: Quota, counted: Any) -> float:
    match quota.window:
        case Window.FIXED:
            return float(counted)
        case Window.SLIDING:
            return float(sum(counted[1::2]))
        case Window.BUCKET:
            return float(counted[0] / micros(period_seconds(quota)))
