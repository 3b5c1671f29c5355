"""What an administrator may see: keys, their use, their changes, the configuration, and the gate's decisions."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from msgspec import structs

from sidecar.admin.auth import Admin
from sidecar.admin.problems import Problem, unknown_key
from sidecar.admin.running import (
    Health,
    KeyFile,
    NearlyUsedUp,
    PastRefusal,
    QuotaReader,
    Running,
    health_of,
    past_refusals,
)
from sidecar.admin.scopes import ScopeUse, scope_use
from sidecar.config.build.config import Config
from sidecar.config.build.modes import observing
from sidecar.core.apikey import Secret, looks_secret
from sidecar.core.model import ApiKey, Route
from sidecar.core.quotas import QuotaUsage
from sidecar.core.units import Clock
from sidecar.gate.explain import Explanation, Line, Question, explain
from sidecar.gate.gate import Gate
from sidecar.keys.cache import KeyFinder
from sidecar.keys.lifecycle import Due, Lifecycle, upcoming_keys
from sidecar.keys.ports import (
    AuditFilter,
    AuditRow,
    KeyConflict,
    KeyFilter,
    KeyStatistics,
    after_cursor,
    cursor_of,
)
from sidecar.keys.records import key_of
from sidecar.keys.transitions import ManyAction, is_open_to
from sidecar.keys.validation import KeyRules
from sidecar.limiter.port import Limiter
from sidecar.rehearsal.past_decision import PastDecision
from sidecar.store.audit import StoredAudit
from sidecar.store.keys import StoredKeys
from sidecar.store.usage import StoredAnomalies, StoredUsage
from sidecar.telemetry.refusals import Refusal, RefusalFilter
from sidecar.usage.anomalies import Anomaly
from sidecar.usage.recorder import UsageFilter, UsageRow


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminDependencies:
    """What the service uses. lifecycle, config, rules, gate_of: of the current configuration."""

    keys: StoredKeys
    statistics: KeyStatistics
    audit: StoredAudit
    usage: StoredUsage
    anomalies: StoredAnomalies
    lifecycle: Callable[[], Lifecycle]
    config: Callable[[], Config]
    rules: Callable[[], KeyRules]
    gate_of: Callable[[KeyFinder, Limiter], Gate]
    limiter: Limiter
    """Only read: nothing is taken from a quota."""
    running: Running
    clock: Clock
    randbelow: Callable[[int], int]
    """As `secrets.randbelow`."""
    key_file: KeyFile | None = None
    """None if keys can be changed."""


DUE_WITHIN_SECONDS: Final = 14 * 86_400
_PAGE_SIZE: Final = 50
_MAX_NAMESAKES: Final = 50
_MAX_NAMED: Final = 500
"""A search of the audit by name covers at most this many keys, the newest."""
_MOST_COUNTED: Final = 10_001
MOST_AT_ONCE: Final = 1_000
"""Most keys that are changed together: other writers wait meanwhile."""
_STREAMED: Final = 500
"""Keys that are read at a time if there may be many."""
_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Keys, the newest first, and the cursor of the next page; None on the last page."""

    keys: Sequence[ApiKey]
    next: str | None


class AdminReader:
    """What an administrator may see. Every method raises Problem and StoreUnavailable."""

    def __init__(self, dependencies: AdminDependencies, admin: Admin) -> None:
        self.admin = admin
        self._dependencies = dependencies

    @property
    def config(self) -> Config:
        return self._dependencies.config()

    def shown_route(self, route: Route) -> Route:
        """The route; for an administrator of one tenant without the file's name: `line 12` for `sidecar.yaml:12`."""
        return route if self.admin.tenant is None else replace(route, where=self._without_file(route.where))

    def _shown(self, lines: Iterable[Line]) -> Sequence[Line]:
        return [Line(line.label, self._without_file(line.text)) for line in lines]

    def _without_file(self, text: str) -> str:
        return text if self.admin.tenant is None else text.replace(f"{self.config.path}:", "line ")

    @property
    def running(self) -> Running:
        return self._dependencies.running

    @property
    def reads_file(self) -> bool:
        """Whether keys come from a file, so that they cannot be changed here."""
        return self._dependencies.key_file is not None

    @property
    def now(self) -> int:
        """Microseconds of UTC."""
        return self._dependencies.clock.micros()

    async def list(self, wanted: KeyFilter) -> Page:
        """At most `wanted.limit` keys; none of a tenant that the administrator may not see.

        Nor any after a key that it may not see: how many are older would reveal that key's age.
        """
        limit = wanted.limit or _PAGE_SIZE
        found = [key_of(row) for row in await self.rows(replace(wanted, limit=limit + 1))]
        following = cursor_of(found[limit - 1], wanted.sort) if len(found) > limit else None
        return Page(keys=found[:limit], next=following)

    async def rows(self, wanted: KeyFilter) -> Sequence[Sequence[Any]]:
        """The same keys as rows of COLUMNS (`keys.records`), for callers that read many."""
        if not (wanted.tenant is None or self.admin.sees(wanted.tenant)) or not await self._sees_key(wanted.after):
            return ()
        return await self._dependencies.keys.rows(replace(wanted, tenant=self.admin.tenant or wanted.tenant))

    async def pages(self, wanted: KeyFilter) -> AsyncIterator[Sequence[ApiKey]]:
        """All keys of `list`, in batches."""
        while True:
            page = await self.list(replace(wanted, limit=_STREAMED))
            yield page.keys
            if page.next is None:
                return
            wanted = after_cursor(wanted, page.next)

    async def open_to(self, action: ManyAction, wanted: KeyFilter | Iterable[str]) -> Sequence[ApiKey]:
        """The keys, selected by filter or ids, that the action would change.

        Raises Problem 404 if an id is unknown, and 409 for more than `MOST_AT_ONCE`.
        """
        found: list[ApiKey] = []
        async for page in self.pages(wanted) if isinstance(wanted, KeyFilter) else self._with_ids(wanted):
            found += [key for key in page if is_open_to(action, key)]
            if len(found) > MOST_AT_ONCE:
                raise Problem(409, "too_many_keys", f"more than {MOST_AT_ONCE:,} keys are selected: select fewer")
        return found

    async def _with_ids(self, key_ids: Iterable[str]) -> AsyncIterator[Sequence[ApiKey]]:
        ids = list(dict.fromkeys(key_ids))
        found = await self._dependencies.keys.among(ids)
        if len(found) < len(ids) or not all(self.admin.sees(key.tenant) for key in found):
            raise unknown_key()
        yield found

    async def get(self, key_id: str) -> ApiKey:
        """The key with exactly this id. Raises Problem 404 if there is none, or if it belongs to another tenant."""
        try:
            # A plaintext must not reach the store as a name.
            key = None if looks_secret(key_id) else await self._dependencies.keys.get(key_id)
        except KeyConflict:  # A stored prefix is not an id.
            key = None
        if key is None or key.id != key_id or not self.admin.sees(key.tenant):
            raise unknown_key()
        return key

    async def total(self, wanted: KeyFilter) -> int:
        """How many keys the filter selects; more than 10,000 are counted as 10,001."""
        if not (wanted.tenant is None or self.admin.sees(wanted.tenant)):
            return 0
        within = replace(wanted, tenant=self.admin.tenant or wanted.tenant)
        return await self._dependencies.keys.count(within, most=_MOST_COUNTED)

    async def audit(self, wanted: AuditFilter, *, key_name: str | None = None) -> Sequence[AuditRow]:
        """Audit rows, the newest first, of tenants that the administrator may see.

        key_name: only for keys that have this name now, searched as in the list of keys.
        """
        if not (wanted.tenant is None or self.admin.sees(wanted.tenant)):
            return ()
        if key_name is not None:
            if looks_secret(key_name):
                return ()
            named = KeyFilter(search=key_name, tenant=self.admin.tenant or wanted.tenant, limit=_MAX_NAMED)
            ids = tuple(key.id for key in await self._dependencies.keys.list(named))
            wanted = replace(wanted, key_ids=ids)
        return await self._dependencies.audit.rows(replace(wanted, tenant=self.admin.tenant or wanted.tenant))

    async def usage(self, key_id: str | None, wanted: UsageFilter) -> Sequence[UsageRow]:
        """The use of one key; without one, the sum over all keys that the administrator may see."""
        if key_id is not None:
            await self.get(key_id)
        return await self._dependencies.usage.counts(replace(wanted, key_id=key_id, tenant=self.admin.tenant))

    async def scope_use(self, key: ApiKey) -> ScopeUse:
        """Which of its scopes the key needed in the last 90 days."""
        file = self._dependencies.key_file
        kept = file is None or file.keeps_usage
        return await scope_use(self._dependencies.usage, self.config, key, now=self.now, kept=kept)

    async def unusual(self, *, limit: int) -> Sequence[Anomaly]:
        """Anomalies, the newest first, of keys that the administrator may see."""
        return await self._dependencies.anomalies.newest(limit=limit, tenant=self.admin.tenant)

    def refusals(self, wanted: RefusalFilter) -> Sequence[Refusal]:
        """The matching newest refusals that the administrator may see, the newest first."""
        newest = self._dependencies.running.refusals.newest()
        return [one for one in newest if wanted.fits(one) and self.admin.sees(one.tenant)][: wanted.limit]

    async def past_refusals(self, refusals: Iterable[Refusal]) -> Sequence[PastRefusal]:
        """As `past_refusals` of admin.running."""
        parts = self._dependencies
        found = await past_refusals(refusals, self.config, parts.gate_of, parts.randbelow)
        return [replace(one, decision=self._shown_decision(one.decision)) for one in found]

    def _shown_decision(self, past: PastDecision) -> PastDecision:
        return replace(past, then=self._shown(past.then), now=self._shown(past.now))

    def counts_by_reason(self) -> Mapping[str, int] | None:
        """Refusals since `running_since`, with and without a key; None for an administrator of one tenant."""
        if self.admin.tenant is not None:
            return None
        return {reason: count for reason, count in self._dependencies.running.counts_by_reason().items() if count}

    @property
    def running_since(self) -> int:
        """Microseconds."""
        return int(self._dependencies.running.since * _MICROSECONDS)

    @property
    def observing(self) -> Sequence[str]:
        """As `observing` of config.build.modes, without keys for an administrator of one tenant."""
        return observing(self.config, keys=self.admin.tenant is None)

    async def health(self) -> Health:
        return await health_of(self._dependencies.running, self.admin)

    async def quota_usage(self, key: ApiKey) -> Sequence[QuotaUsage]:
        """As QuotaReader.of."""
        return await self._quotas().of(key)

    async def nearly_used_up(self) -> Sequence[NearlyUsedUp]:
        """As QuotaReader.nearly_used_up."""
        return await self._quotas().nearly_used_up(self.admin)

    def _quotas(self) -> QuotaReader:
        parts = self._dependencies
        return QuotaReader(parts.running, parts.keys, parts.limiter, self.config, now=self.now / _MICROSECONDS)

    async def upcoming(self) -> Sequence[Due]:
        """Keys that expire or retire soon, or that are older than `keys.max_age`."""
        return await upcoming_keys(
            self._dependencies.statistics,
            self.now,
            max_age_seconds=self.config.keys.max_age_seconds,
            within_seconds=DUE_WITHIN_SECONDS,
            tenant=self.admin.tenant,
        )

    async def counts(self) -> dict[str, int] | None:
        """The number of keys by status; None for an administrator of one tenant, who may not see other keys."""
        if self.admin.tenant is not None:
            return None
        counts: Counter[str] = Counter()
        for (status, _), count in (await self._dependencies.statistics.counts()).items():
            counts[status] += count
        return dict(counts)

    async def explain(
        self, method: str, target: str, *, key: str | None = None, secret: Secret | None = None
    ) -> Explanation:
        """How the gate would decide on a request with this key (an id or a stored prefix), or with this secret.

        A key that the administrator may not see is unknown: 404 for an id, a denial by the gate for a secret.
        """
        found = await self._by_secret(secret) if secret else await self._by_name(key) if key else None
        question = Question(method=method, target=target, key=found, secret=secret)
        dependencies = self._dependencies
        explanation = await explain(
            question, self.config, dependencies.gate_of, dependencies.limiter, randbelow=dependencies.randbelow
        )
        if self.admin.tenant is None or explanation.decision.route is None:
            return replace(explanation, lines=self._shown(explanation.lines))
        decision = structs.replace(explanation.decision, route=self.shown_route(explanation.decision.route))
        return replace(explanation, decision=decision, lines=self._shown(explanation.lines))

    async def _by_secret(self, secret: Secret) -> ApiKey | None:
        found = await self._dependencies.lifecycle().find_by_secret(secret.text)
        return found if found is not None and self.admin.sees(found.tenant) else None

    async def _by_name(self, name: str) -> ApiKey:
        """The key by id, or by a stored prefix that no other visible key has. Raises Problem."""
        try:
            return await self.get(name)
        except Problem:
            if looks_secret(name):
                raise
        found = await self._dependencies.keys.list(
            KeyFilter(search=name, tenant=self.admin.tenant, limit=_MAX_NAMESAKES)
        )
        namesakes = [key for key in found if key.prefix == name]
        if len(namesakes) != 1:
            raise unknown_key()
        return namesakes[0]

    async def _sees_key(self, key_id: str | None) -> bool:
        if self.admin.tenant is None or key_id is None:
            return True
        try:
            await self.get(key_id)
        except Problem:
            return False
        return True
