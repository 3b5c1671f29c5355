"""Everything that the API and the page can do, in the name of one administrator and within its reach."""

from dataclasses import replace

from sidecar.admin.auth import Admin
from sidecar.admin.grants import plan_flaws, quota_flaws, scope_flaws, tenant_flaws
from sidecar.admin.ports import Ports
from sidecar.admin.problems import Flaw, forbidden
from sidecar.admin.viewer import Viewer
from sidecar.core.model import ApiKey
from sidecar.keys.lifecycle import Issued, Rotated
from sidecar.keys.ports import Actor, Once
from sidecar.keys.records import etag_of
from sidecar.keys.transitions import KeyChange, Rotation, with_change
from sidecar.keys.validation import NewKey


class Desk(Viewer):
    """What a Viewer sees, and the changes of it. Every method raises Refusal and StoreUnavailable."""

    def __init__(self, ports: Ports, admin: Admin, *, address: str) -> None:
        super().__init__(ports, admin)
        self._actor = Actor(name=f"token:{admin.name}", source=address)

    async def issue(self, wanted: NewKey, *, once: Once | None = None) -> Issued:
        """Raises UnfitKey, and Repeated for a request that was carried out before."""
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
        self, key_id: str, rotation: Rotation, *, etag: str | None = None, once: Once | None = None
    ) -> Rotated:
        """The plaintext of the new key opens all that the old one does, so all of it must be this administrator's to
        give. Raises UnfitKey, KeyConflict, and Repeated for a request that was carried out before."""
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

        Raises UnfitKey, KeyConflict, and KeyChanged where `etag` is not that of the key any more.
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
