"""What only the running process knows, for an administrator: its state, its refusals, and what is left of quotas."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from sidecar.admin.auth import Admin
from sidecar.config.build.config import Config
from sidecar.core.errors import Fault
from sidecar.core.model import ApiKey, Bucket, QuotaState, Subject
from sidecar.core.quotas import QuotaUsage, buckets_for, limits_of
from sidecar.core.routing import NO_ROUTE
from sidecar.core.units import rfc3339
from sidecar.gate.explain import allowed_routes
from sidecar.gate.gate import Gate
from sidecar.keys.cache import KeyFinder
from sidecar.keys.ports import KeyFilter
from sidecar.limiter.port import Limiter
from sidecar.rehearsal.past_decision import PastDecision, past_decision
from sidecar.rehearsal.recorded import RecordedRequest
from sidecar.store.keys import StoredKeys
from sidecar.telemetry.refusals import Refusal, Refusals
from sidecar.telemetry.reloads import Reloads

_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Access to the running process. Times in Unix seconds.

    counts_by_reason: since `since`. counts_by_route: the same by route, where the empty reason has all requests.
    observed_by_route: of these, the ones that went on only because their refusal is observed, by reason.
    fullest: keys, tenants and environments that have used most of a limit, given the limits of plans by quota; called
    in a thread.
    problems, remarks: lines as of `/readyz?verbose`.
    """

    refusals: Refusals
    counts_by_reason: Callable[[], Mapping[str, int]]
    counts_by_route: Callable[[], Mapping[str, Mapping[str, int]]]
    observed_by_route: Callable[[], Mapping[str, Mapping[str, int]]]
    since: float
    fullest: Callable[[Mapping[str, Collection[int]]], Sequence[tuple[Subject, str]]]
    problems: Callable[[], Awaitable[Sequence[str]]]
    remarks: Callable[[], Sequence[str]]
    config_since: Callable[[], float]
    reloads: Reloads | None
    """None if the configuration is never reloaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFile:
    """The file that keys are read from, and whether their use and changes are stored."""

    path: str
    keeps_usage: bool

    def refusal(self, admin: Admin) -> str:
        """Why no key can be changed. An administrator of one tenant may not see file names."""
        file = f"the file {self.path}" if admin.tenant is None else "a file"
        return f"the keys come from {file}, which is read-only here: change the file"

    def note(self, admin: Admin) -> str:
        kept = "" if self.keeps_usage else "Their use and changes are not stored: set store.usage to keep them."
        return f"The keys {self.refusal(admin).removeprefix('the keys ')}.{kept}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether requests can be decided on and served. problems, remarks: lines that begin with what they are about."""

    problems: Sequence[str]
    remarks: Sequence[str]
    config_since: float
    upstream_failed: Refusal | None
    """The newest request since the start that the upstream failed to serve."""

    @property
    def ready(self) -> bool:
        return not self.problems

    def of(self, part: str) -> str:
        """What is wrong with `config` or `store`; empty if nothing is."""
        lines = (line.partition(": ") for line in (*self.problems, *self.remarks))
        return "; ".join(text for name, _, text in lines if name == part)


async def health_of(running: Running, admin: Admin) -> Health:
    """An administrator of one tenant sees neither files and hosts of the sidecar nor requests of others."""
    problems, remarks = await running.problems(), running.remarks()
    failed = running.refusals.upstream_failure()
    if admin.tenant is not None:
        problems, remarks = (list(map(_without_details, lines)) for lines in (problems, remarks))
        failed = None if failed is None else _without_request(failed)
    return Health(problems=problems, remarks=remarks, config_since=running.config_since(), upstream_failed=failed)


def _without_details(line: str) -> str:
    return f"{line.partition(':')[0]}: who operates the sidecar can see why"


def _without_request(refusal: Refusal) -> Refusal:
    return Refusal(
        at=refusal.at, status=refusal.status, reason=refusal.reason, cause=refusal.cause, route=refusal.route
    )


# Refusals, each with its past decision and today's.

MOST_PAST: Final = 20
"""Most refusals of one id that are decided again: a client may send the same id with every request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRefusal:
    """A refusal, and the decision that caused it."""

    refusal: Refusal
    decision: PastDecision


async def past_refusals(
    refusals: Iterable[Refusal],
    config: Config,
    gate_of: Callable[[KeyFinder, Limiter], Gate],
    randbelow: Callable[[int], int],
) -> Sequence[PastRefusal]:
    """At most MOST_PAST. No quota is taken."""
    found = []
    for one in islice(refusals, MOST_PAST):
        decision = await past_decision(
            _record(one),
            config,
            gate_of,
            missing=one.missing,
            quotas=one.quotas,
            is_cut=one.is_cut,
            randbelow=randbelow,
        )
        found.append(PastRefusal(refusal=one, decision=decision))
        await asyncio.sleep(0)  # Let requests continue: each decision makes a new gate.
    return found


def _record(refusal: Refusal) -> RecordedRequest:
    """The refusal in the form of a line of the access log."""
    return RecordedRequest(
        time=rfc3339(refusal.at),
        request_id=refusal.request_id,
        key_id=refusal.key_id or None,
        key_prefix=refusal.prefix or None,
        tenant=refusal.tenant,
        environment=refusal.environment,
        plan=refusal.plan,
        scopes=refusal.scopes,
        credential="pass_through" if refusal.pass_through else "key" if refusal.key_id else None,
        route=None if refusal.route == NO_ROUTE else refusal.route,
        method=refusal.method,
        path=refusal.path,
        status=refusal.status,
        reason=None if refusal.observed else refusal.reason,
        would_deny=refusal.reason if refusal.observed else None,
        cause=refusal.cause,
        quota=refusal.quota or None,
        limit=refusal.limit if refusal.quota else None,
        retry_after=refusal.retry_after if refusal.quota else None,
        client_address=refusal.address,
        config=refusal.config or None,
    )


# What is left of quotas.

NEARLY: Final = 0.8
"""The used share from which a limit is nearly used up."""
_MOST_CANDIDATES: Final = 200
"""Keys of each kind that are checked for that."""
_KEYS_OF_A_TENANT: Final = 5
"""The latest used ones, whose plans and limits say what the tenant's limit is; of an environment alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NearlyUsedUp:
    """A quota of which `key`, or all keys of its tenant or environment together, have used most."""

    key: ApiKey
    usage: QuotaUsage

    @property
    def of_tenant(self) -> bool:
        by = self.usage.quota.by
        return self.key.tenant is not None and Subject.TENANT in by and Subject.KEY not in by

    @property
    def of_environment(self) -> bool:
        return self.key.environment is not None and self.usage.quota.by == (Subject.ENVIRONMENT,)

    @property
    def subject(self) -> tuple[str | None, ...]:
        """The same for all keys that share the quota's state."""
        if self.of_environment:
            return "environment", self.key.environment, self.usage.quota.name
        if not self.of_tenant:
            return self.key.id, self.usage.quota.name
        environment = self.key.environment if Subject.ENVIRONMENT in self.usage.quota.by else None
        return "tenant", self.key.tenant, environment, self.usage.quota.name


class QuotaReader:
    """Reads states of quotas at `now` (Unix seconds); nothing is taken."""

    def __init__(self, running: Running, keys: StoredKeys, limiter: Limiter, config: Config, *, now: float) -> None:
        self._running, self._keys, self._limiter, self._config, self._now = running, keys, limiter, config, now
        self._refusing = running.refusals.refusing(now)

    async def of(self, key: ApiKey) -> Sequence[QuotaUsage]:
        """The state of each quota on the routes that the key may use, once each."""
        config, found = self._config, dict[str, QuotaUsage]()
        for route in allowed_routes(config, key):
            charges = route.policy.charges
            for bucket in buckets_for(charges, key=key, address="", route=route.name, plans=config.plans):
                name = bucket.quota.name
                if name not in found:
                    found[name] = await self._usage_of(bucket, self._refusing.get((key.id, name)))
        return list(found.values())

    async def nearly_used_up(self, admin: Admin) -> Sequence[NearlyUsedUp]:
        """Quotas that are mostly used, or that refused a key and have not been restored; the fullest first."""
        found = dict[tuple[str | None, ...], NearlyUsedUp]()
        for key in await self._candidates():
            for usage in await self.of(key) if admin.sees(key.tenant) else ():
                one = NearlyUsedUp(key=key, usage=usage)
                before = found.get(one.subject)
                if usage.used_share >= (NEARLY if before is None else before.usage.used_share):
                    found[one.subject] = one
        return sorted(found.values(), key=lambda one: -one.usage.used_share)

    async def _candidates(self) -> Sequence[ApiKey]:
        """Keys that may qualify. Only some of those with their own limits, of which there may be many."""
        refused = [key_id for key_id, _ in reversed(list(self._refusing))][:_MOST_CANDIDATES]
        fullest = await asyncio.to_thread(self._running.fullest, limits_of(self._config.plans))
        tenants = [name for subject, name in fullest if subject is Subject.TENANT]
        environments = [name for subject, name in fullest if subject is Subject.ENVIRONMENT]
        # A key without a tenant or environment is counted alone, by a space and its id.
        alone = [name.strip() for name in (*tenants, *environments) if name.startswith(" ")]
        ids = [*refused, *(name for subject, name in fullest if subject is Subject.KEY), *alone]
        keys = [*await self._keys.among(list(dict.fromkeys(ids))[: 2 * _MOST_CANDIDATES])]
        for tenant in (name for name in tenants if not name.startswith(" ")):
            wanted = KeyFilter(tenant=tenant, sort="used", limit=_KEYS_OF_A_TENANT)
            keys += await self._keys.list(wanted)
        for environment in (name for name in environments if not name.startswith(" ")):
            keys += await self._keys.list(KeyFilter(environment=environment, sort="used", limit=_KEYS_OF_A_TENANT))
        keys += await self._keys.with_own_limits(limit=_MOST_CANDIDATES)
        return list({key.id: key for key in keys}.values())

    async def _usage_of(self, bucket: Bucket, refused: QuotaState | None) -> QuotaUsage:
        by, quota = set(bucket.quota.by), bucket.quota
        if by & {Subject.ADDRESS, Subject.ROUTE}:
            note = f"counted by {' and '.join(subject.value for subject in quota.by)}"
            return QuotaUsage(quota=quota, limit=bucket.limit, state=refused, note=note)
        try:
            one = Bucket(quota=quota, subject=bucket.subject, limit=bucket.limit)
            states = (await self._limiter.peek([one], self._now)).states
        except Fault:
            states = ()
        if not states:
            return QuotaUsage(quota=quota, limit=bucket.limit, state=None, note="currently not available")
        [state] = states
        shared = " and ".join(f"the {part.value}" for part in quota.by)
        note = "" if Subject.KEY in by else f"shared by all keys of {shared}"
        return QuotaUsage(quota=quota, limit=bucket.limit, state=state, note=note)
