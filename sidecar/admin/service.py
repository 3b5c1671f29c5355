"""What the API and the web pages change for an administrator, within what that administrator may see and grant."""

from collections.abc import Sequence
from dataclasses import replace

from sidecar.admin.auth import Admin, plan_errors, quota_errors, scope_errors, tenant_errors
from sidecar.admin.problems import FieldError, Problem, forbidden
from sidecar.admin.reading import AdminDependencies, AdminReader
from sidecar.core.model import ApiKey
from sidecar.keys.lifecycle import Issued, Rotated
from sidecar.keys.ports import (
    Actor,
    IdempotencyKey,
    UnknownKey,
)
from sidecar.keys.records import etag_of
from sidecar.keys.transitions import KeyChange, ManyAction, Rotation, changed_alike, with_change
from sidecar.keys.validation import NewKey


class AdminService(AdminReader):
    """Adds the changes to AdminReader. Every method raises Problem and StoreUnavailable."""

    def __init__(self, dependencies: AdminDependencies, admin: Admin, *, address: str) -> None:
        super().__init__(dependencies, admin)
        self._actor = Actor(name=f"token:{admin.name}", source=address)

    async def issue(self, wanted: NewKey, *, idempotency_key: IdempotencyKey | None = None) -> Issued:
        """Raises InvalidKey, AlreadyProcessed and IdempotencyKeyReused."""
        self.must_write()
        if self.admin.tenant is not None and wanted.tenant is None:
            wanted = replace(wanted, tenant=self.admin.tenant)
        rules = self._dependencies.rules()
        rules.check_new(wanted, self.now)
        scopes = rules.default_scopes if wanted.scopes is None else wanted.scopes
        plan = rules.plan_of(wanted)
        _forbid(
            *tenant_errors(self.admin, wanted.tenant),
            *scope_errors(self.admin, scopes, self.config),
            *plan_errors(self.admin, plan),
            *quota_errors(self.admin, wanted.quotas, plan, self.config),
        )
        return await self._dependencies.lifecycle().issue(
            wanted, rules, actor=self._actor, idempotency_key=idempotency_key
        )

    async def rotate(
        self, key_id: str, rotation: Rotation, *, etag: str | None = None, idempotency_key: IdempotencyKey | None = None
    ) -> Rotated:
        """The administrator must be allowed to give the scopes, plan and limits, which the new key has as well.

        Raises InvalidKey, KeyConflict, AlreadyProcessed and IdempotencyKeyReused.
        """
        key = await self._changeable(key_id)
        self._require_grantable(key)
        return await self._dependencies.lifecycle().rotate(
            key.id,
            rotation,
            self._dependencies.rules(),
            actor=self._actor,
            expected_etag=self._checked_etag(key) if etag is None else etag,
            idempotency_key=idempotency_key,
        )

    async def change(self, key_id: str, change: KeyChange, *, etag: str | None = None) -> ApiKey:
        """The key keeps what it has, even if the administrator may not give it; but its life is then not extended.

        Raises InvalidKey, KeyConflict, and KeyChanged if the key no longer has `etag`.
        """
        key = await self._changeable(key_id)
        rules = self._dependencies.rules()
        wanted = with_change(key, change, rules, self.now)
        if _later(wanted.expires_at, key.expires_at):
            self._require_grantable(wanted)
        new_limits = dict(wanted.quotas.items() - key.quotas.items())
        _forbid(
            *scope_errors(self.admin, wanted.scopes, self.config, held=key.scopes),
            *(plan_errors(self.admin, wanted.plan) if wanted.plan != key.plan else ()),
            *quota_errors(self.admin, new_limits, wanted.plan, self.config),
        )
        expected = self._checked_etag(key) if etag is None else etag
        return await self._dependencies.lifecycle().change(
            key.id, change, rules, actor=self._actor, expected_etag=expected
        )

    async def disable(self, key_id: str, *, etag: str | None = None) -> ApiKey:
        """Raises KeyConflict for a revoked key."""
        key = await self._changeable(key_id)
        return await self._dependencies.lifecycle().disable(key.id, actor=self._actor, expected_etag=etag)

    async def enable(self, key_id: str, *, etag: str | None = None) -> ApiKey:
        """The administrator must be allowed to give the scopes, plan and limits that the key gets back.

        Raises KeyConflict for a revoked key.
        """
        key = await self._changeable(key_id)
        self._require_grantable(key)
        expected = self._checked_etag(key) if etag is None else etag
        return await self._dependencies.lifecycle().enable(key.id, actor=self._actor, expected_etag=expected)

    async def revoke(self, key_id: str, *, etag: str | None = None) -> ApiKey:
        """Revoking is final."""
        key = await self._changeable(key_id)
        return await self._dependencies.lifecycle().revoke(key.id, actor=self._actor, expected_etag=etag)

    async def change_all(
        self, action: ManyAction, key_ids: Sequence[str], *, unused_since: int | None = None
    ) -> Sequence[ApiKey]:
        """Disable or revoke all of these keys or none; returns those that changed.

        unused_since: skips keys that were used after this time (microseconds). Raises UnknownKey.
        """
        self.must_write()
        at = self.now
        edit = changed_alike(action, at, unused_since=unused_since)

        def within_reach(key: ApiKey) -> ApiKey:
            if not self.admin.sees(key.tenant):
                raise UnknownKey("a key of another tenant")
            return edit(key)

        store = self._dependencies.keys
        both = await store.change_all(key_ids, within_reach, action=action, at=at, actor=self._actor)
        return [after for before, after in both if before != after]

    def _checked_etag(self, key: ApiKey) -> str | None:
        """For an administrator of one tenant, the key must not change between this check and the change itself."""
        return etag_of(key) if self.admin.tenant is not None else None

    def _require_grantable(self, key: ApiKey) -> None:
        """Raises Problem 403 if the key has scopes, a plan or limits that the administrator may not give."""
        _forbid(
            *scope_errors(self.admin, key.scopes, self.config),
            *plan_errors(self.admin, key.plan),
            *quota_errors(self.admin, key.quotas, key.plan, self.config),
        )

    async def _changeable(self, key_id: str) -> ApiKey:
        self.must_write()
        return await self.get(key_id)

    def must_write(self) -> None:
        """Raises Problem 403 for an administrator who may only read, and 409 if keys come from a file."""
        if not self.admin.may_write:
            raise forbidden("this admin token may only read")
        if self._dependencies.key_file is not None:
            raise Problem(409, "read_only", self._dependencies.key_file.refusal(self.admin))


def _later(expires_at: int | None, before: int | None) -> bool:
    """Whether the key expires later than before; None is never."""
    return before is not None and (expires_at is None or expires_at > before)


def _forbid(*errors: FieldError) -> None:
    if errors:
        raise forbidden("the admin token may not give this; see errors", errors)
