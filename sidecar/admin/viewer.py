"""What an administrator sees: keys, their use and changes, the configuration, and why the gate decides as it does."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sidecar.admin.auth import Admin
from sidecar.admin.ports import Ports
from sidecar.admin.problems import Refusal, unknown_key
from sidecar.config.settings import Config
from sidecar.core.apikey import Secret, looks_secret
from sidecar.core.model import ApiKey
from sidecar.gate.explain import Explanation, Question, explain
from sidecar.keys.due import Due
from sidecar.keys.ports import AuditFilter, AuditRow, KeyConflict, KeyFilter
from sidecar.usage.anomalies import UnusualEvent
from sidecar.usage.ports import UsageFilter, UsageRow

DUE_WITHIN_SECONDS: Final = 14 * 86_400
_PAGE: Final = 50
_NAMESAKES: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some keys, the newest first, and where the next page begins; None where this is the last."""

    keys: Sequence[ApiKey]
    next: str | None


class Viewer:
    """Every method raises Refusal (what this administrator may not see), and StoreUnavailable."""

    def __init__(self, ports: Ports, admin: Admin) -> None:
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
        found = await self._ports.store.list(within)
        return Page(keys=found[:limit], next=found[limit - 1].id if len(found) > limit else None)

    async def get(self, key_id: str) -> ApiKey:
        """The key with exactly this id. Raises Refusal 404 for none, and for one of another tenant."""
        try:
            # A plaintext must not be handed to the store as a name.
            key = None if looks_secret(key_id) else await self._ports.store.get(key_id)
        except KeyConflict:  # A stored prefix, which is no id.
            key = None
        if key is None or key.id != key_id or not self.admin.sees(key.tenant):
            raise unknown_key()
        return key

    async def audit(self, wanted: AuditFilter) -> Sequence[AuditRow]:
        """Newest first; rows of this administrator's tenant only."""
        if not (wanted.tenant is None or self.admin.sees(wanted.tenant)):
            return ()
        return await self._ports.store.audit(replace(wanted, tenant=self.admin.tenant or wanted.tenant))

    async def usage(self, key_id: str | None, wanted: UsageFilter) -> Sequence[UsageRow]:
        """Of one key; without one, the sum over all that this administrator sees."""
        if key_id is not None:
            await self.get(key_id)
        return await self._ports.usage.usage(replace(wanted, key_id=key_id, tenant=self.admin.tenant))

    async def unusual(self, *, limit: int) -> Sequence[UnusualEvent]:
        """The newest first. An administrator of one tenant is told of its keys only."""
        return await self._ports.usage.unusual(limit=limit, tenant=self.admin.tenant)

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
        for (status, _), count in (await self._ports.store.counts()).items():
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
        found = await self._ports.store.list(KeyFilter(search=name, tenant=self.admin.tenant, limit=_NAMESAKES))
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
