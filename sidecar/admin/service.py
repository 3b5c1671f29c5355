"""Everything that the API and the page can do, in the name of one administrator and within its reach."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sidecar.admin.auth import Admin, plan_flaws, quota_flaws, scope_flaws, tenant_flaws
from sidecar.admin.problems import Flaw, Refusal, forbidden, unknown_key
from sidecar.config.settings import Config
from sidecar.core.apikey import Secret, looks_secret
from sidecar.core.model import ApiKey
from sidecar.gate.explain import Explanation, Question, explain
from sidecar.gate.gate import Gate, KeyFinder
from sidecar.keys.lifecycle import Due, Issued, Lifecycle, Rotated
from sidecar.keys.ports import (
    Actor,
    AuditFilter,
    AuditRow,
    AuditTrail,
    IdempotencyKey,
    KeyCensus,
    KeyConflict,
    KeyFilter,
    KeyStore,
)
from sidecar.keys.records import etag_of
from sidecar.keys.transitions import KeyChange, Rotation, with_change
from sidecar.keys.validation import KeyRules, NewKey
from sidecar.limiter.port import Limiter
from sidecar.usage.anomalies import Anomaly
from sidecar.usage.ports import AnomalyStore, UsageFilter, UsageRow, UsageStore


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminDependencies:
    """What the admin service uses. `clock`: Unix seconds. `lifecycle`, `config`, `rules` and `gate_of` are those in force."""

    keys: KeyStore
    census: KeyCensus
    audit: AuditTrail
    usage: UsageStore
    anomalies: AnomalyStore
    lifecycle: Callable[[], Lifecycle]
    config: Callable[[], Config]
    rules: Callable[[], KeyRules]
    gate_of: Callable[[KeyFinder, Limiter], Gate]
    limiter: Limiter
    """Looked at, not taken from."""
    clock: Callable[[], float]
    randbelow: Callable[[int], int]
    """As `secrets.randbelow`."""


# What an administrator sees: keys, their use and changes, the configuration, and why the gate decides as it does.


DUE_WITHIN_SECONDS: Final = 14 * 86_400
_PAGE: Final = 50
_NAMESAKES: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some keys, the newest first, and where the next page begins; None where this is the last."""

    keys: Sequence[ApiKey]
    next: str | None


class AdminReader:
    """Every method raises Refusal (what this administrator may not see), and StoreUnavailable."""

    def __init__(self, ports: AdminDependencies, admin: Admin) -> None:
        self.admin = admin
        self._ports = ports

    @property
    def config(self) -> Config:
        return self._ports.config()

    @property
    def now(self) -> int:
        """Microseconds of UTC."""
        return int(self._ports.clock() * 1_000_000)

    async def list(self, wanted: KeyFilter) -> Page:
        """`wanted.limit` keys at most; a tenant that is not the administrator's has none, and so it is after a key
        that is not: how much is older than that one would tell of it."""
        limit = wanted.limit or _PAGE
        if not (wanted.tenant is None or self.admin.sees(wanted.tenant)) or not await self._sees_key(wanted.after):
            return Page(keys=(), next=None)
        within = replace(wanted, tenant=self.admin.tenant or wanted.tenant, limit=limit + 1)
        found = await self._ports.keys.list(within)
        return Page(keys=found[:limit], next=found[limit - 1].id if len(found) > limit else None)

    async def get(self, key_id: str) -> ApiKey:
        """The key with exactly this id. Raises Refusal 404 for none, and for one of another tenant."""
        try:
            # A plaintext must not be handed to the store as a name.
            key = None if looks_secret(key_id) else await self._ports.keys.get(key_id)
        except KeyConflict:  # A stored prefix, which is no id.
            key = None
        if key is None or key.id != key_id or not self.admin.sees(key.tenant):
            raise unknown_key()
        return key

    async def audit(self, wanted: AuditFilter) -> Sequence[AuditRow]:
        """Newest first; rows of this administrator's tenant only."""
        if not (wanted.tenant is None or self.admin.sees(wanted.tenant)):
            return ()
        return await self._ports.audit.audit(replace(wanted, tenant=self.admin.tenant or wanted.tenant))

    async def usage(self, key_id: str | None, wanted: UsageFilter) -> Sequence[UsageRow]:
        """Of one key; without one, the sum over all that this administrator sees."""
        if key_id is not None:
            await self.get(key_id)
        return await self._ports.usage.usage(replace(wanted, key_id=key_id, tenant=self.admin.tenant))

    async def unusual(self, *, limit: int) -> Sequence[Anomaly]:
        """The newest first. An administrator of one tenant is told of its keys only."""
        return await self._ports.anomalies.unusual(limit=limit, tenant=self.admin.tenant)

    async def due(self) -> Sequence[Due]:
        """Keys whose time is near, or that are older than they should become."""
        return await self._ports.lifecycle().due(
            self.now,
            max_age_seconds=self.config.keys.max_age_seconds,
            within_seconds=DUE_WITHIN_SECONDS,
            tenant=self.admin.tenant,
        )

    async def counts(self) -> dict[str, int] | None:
        """Keys by status; None for an administrator of one tenant, to whom others' keys do not exist."""
        if self.admin.tenant is not None:
            return None
        counts: Counter[str] = Counter()
        for (status, _), count in (await self._ports.census.counts()).items():
            counts[status] += count
        return dict(counts)

    async def explain(
        self, method: str, target: str, *, key: str | None = None, secret: Secret | None = None
    ) -> Explanation:
        """What would come of a request with the key of this id or stored prefix, or with this very one.

        A key that the administrator does not see is as unknown: 404 for an id, a refusal by the gate for a secret.
        """
        found = await self._by_secret(secret) if secret else await self._named(key) if key else None
        question = Question(method=method, target=target, key=found, secret=secret)
        ports = self._ports
        return await explain(question, self.config, ports.gate_of, ports.limiter, randbelow=ports.randbelow)

    async def _by_secret(self, secret: Secret) -> ApiKey | None:
        found = await self._ports.lifecycle().find_by_secret(secret.text)
        return found if found is not None and self.admin.sees(found.tenant) else None

    async def _named(self, name: str) -> ApiKey:
        """By id, or by a stored prefix that only one of the keys that are seen has. Raises Refusal."""
        try:
            return await self.get(name)
        except Refusal:
            if looks_secret(name):
                raise
        found = await self._ports.keys.list(KeyFilter(search=name, tenant=self.admin.tenant, limit=_NAMESAKES))
        [*namesakes] = [one for one in found if one.prefix == name]
        if len(namesakes) != 1:
            raise unknown_key()
        return namesakes[0]

    async def _sees_key(self, key_id: str | None) -> bool:
        if self.admin.tenant is None or key_id is None:
            return True
        try:
            await self.get(key_id)
        except Refusal:
            return False
        return True


class AdminService(AdminReader):
    """What a Viewer sees, and the changes of it. Every method raises Refusal and StoreUnavailable."""

    def __init__(self, ports: AdminDependencies, admin: Admin, *, address: str) -> None:
        super().__init__(ports, admin)
        self._actor = Actor(name=f"token:{admin.name}", source=address)

    async def issue(self, wanted: NewKey, *, once: IdempotencyKey | None = None) -> Issued:
        """Raises InvalidKey, and Repeated for a request that was carried out before."""
        self.must_write()
        if self.admin.tenant is not None and wanted.tenant is None:
            wanted = replace(wanted, tenant=self.admin.tenant)
        rules = self._ports.rules()
        rules.check(wanted, self.now)
        scopes = rules.default_scopes if wanted.scopes is None else wanted.scopes
        _refuse(
            *tenant_flaws(self.admin, wanted.tenant),
            *scope_flaws(self.admin, scopes, self.config),
            *plan_flaws(self.admin, wanted.plan),
            *quota_flaws(self.admin, wanted.quotas, wanted.plan, self.config),
        )
        return await self._ports.lifecycle().issue(wanted, rules, actor=self._actor, once=once)

    async def rotate(
        self, key_id: str, rotation: Rotation, *, etag: str | None = None, once: IdempotencyKey | None = None
    ) -> Rotated:
        """The plaintext of the new key opens all that the old one does, so all of it must be this administrator's to
        give. Raises InvalidKey, KeyConflict, and Repeated for a request that was carried out before."""
        key = await self._own(key_id)
        self._refuse_beyond(key)
        return await self._ports.lifecycle().rotate(
            key.id,
            rotation,
            self._ports.rules(),
            actor=self._actor,
            expected_etag=self._as_judged(key) if etag is None else etag,
            once=once,
        )

    async def change(self, key_id: str, change: KeyChange, *, etag: str | None = None) -> ApiKey:
        """What the key has already may stay, though it were not this administrator's to give; but not for longer.

        Raises InvalidKey, KeyConflict, and KeyChanged where `etag` is not that of the key any more.
        """
        key = await self._own(key_id)
        rules = self._ports.rules()
        wanted = with_change(key, change, rules, self.now)
        if _later(wanted.expires_at, key.expires_at):
            self._refuse_beyond(wanted)
        new_limits = dict(wanted.quotas.items() - key.quotas.items())
        _refuse(
            *scope_flaws(self.admin, wanted.scopes, self.config, held=key.scopes),
            *(plan_flaws(self.admin, wanted.plan) if wanted.plan != key.plan else ()),
            *quota_flaws(self.admin, new_limits, wanted.plan, self.config),
        )
        expected = self._as_judged(key) if etag is None else etag
        return await self._ports.lifecycle().change(key.id, change, rules, actor=self._actor, expected_etag=expected)

    async def disable(self, key_id: str, *, etag: str | None = None) -> ApiKey:
        """Raises KeyConflict for a revoked key."""
        key = await self._own(key_id)
        return await self._ports.lifecycle().disable(key.id, actor=self._actor, expected_etag=etag)

    async def enable(self, key_id: str, *, etag: str | None = None) -> ApiKey:
        """Gives back all that the key may do, so all of it must be this administrator's to give.

        Raises KeyConflict for a revoked key.
        """
        key = await self._own(key_id)
        self._refuse_beyond(key)
        expected = self._as_judged(key) if etag is None else etag
        return await self._ports.lifecycle().enable(key.id, actor=self._actor, expected_etag=expected)

    async def revoke(self, key_id: str, *, etag: str | None = None) -> ApiKey:
        """For ever."""
        key = await self._own(key_id)
        return await self._ports.lifecycle().revoke(key.id, actor=self._actor, expected_etag=etag)

    def _as_judged(self, key: ApiKey) -> str | None:
        """Whoever may not give everything changes only the very key that was looked at."""
        return etag_of(key) if self.admin.tenant is not None else None

    def _refuse_beyond(self, key: ApiKey) -> None:
        """Raises Refusal where the key may do what this administrator may not give."""
        _refuse(
            *scope_flaws(self.admin, key.scopes, self.config),
            *plan_flaws(self.admin, key.plan),
            *quota_flaws(self.admin, key.quotas, key.plan, self.config),
        )

    async def _own(self, key_id: str) -> ApiKey:
        self.must_write()
        return await self.get(key_id)

    def must_write(self) -> None:
        """Raises Refusal for an administrator who may read only."""
        if not self.admin.may_write:
            raise forbidden("this admin token may read only")


def _later(expires_at: int | None, before: int | None) -> bool:
    """Whether a key lives longer than before; None is for ever."""
    return before is not None and (expires_at is None or expires_at > before)


def _refuse(*flaws: Flaw) -> None:
    if flaws:
        raise forbidden("this goes beyond what the admin token may give; see errors", flaws)
