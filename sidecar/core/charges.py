"""Which buckets a request takes from."""

from collections.abc import Mapping, Sequence

from sidecar.core.client_address import address_subject
from sidecar.core.model import ApiKey, Bucket, Charge, Quota, Subject

Plans = Mapping[str, Mapping[str, int]]


def buckets_for(
    charges: Sequence[Charge], *, key: ApiKey | None, address: str, route: str, plans: Plans
) -> list[Bucket]:
    """One bucket for each charge that applies: by key and by tenant only with a key, `only` as it says."""
    return [
        Bucket(
            quota=charge.quota,
            subject=_subject(charge.quota, key, address, route),
            limit=limit_of(charge.quota, key, plans),
            cost=charge.cost,
        )
        for charge in charges
        if _applies(charge.quota, key)
    ]


def limit_of(quota: Quota, key: ApiKey | None, plans: Plans) -> int:
    """The key's own limit, else its plan's, else the quota's."""
    if key is None:
        return quota.limit
    planned = plans.get(key.plan, {}) if key.plan else {}
    return key.quotas.get(quota.name, planned.get(quota.name, quota.limit))


def depends_on_address(charges: Sequence[Charge]) -> bool:
    return any(Subject.ADDRESS in charge.quota.by for charge in charges)


def _applies(quota: Quota, key: ApiKey | None) -> bool:
    if key is None:
        return quota.only != "key" and not {Subject.KEY, Subject.TENANT} & set(quota.by)
    return quota.only != "anonymous"


def _subject(quota: Quota, key: ApiKey | None, address: str, route: str) -> tuple[str, ...]:
    return tuple(_part(subject, key, address, route) for subject in quota.by)


def _part(subject: Subject, key: ApiKey | None, address: str, route: str) -> str:
    match subject:
        case Subject.ADDRESS:
            return address_subject(address)
        case Subject.ROUTE:
            return route
        case Subject.TENANT:
            # A key without a tenant is counted alone (no tenant begins with a space).
            return "" if key is None else key.tenant or f" {key.id}"
        case Subject.KEY:
            return "" if key is None else key.id
