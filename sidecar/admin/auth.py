"""Administrators: their tokens, their sessions, and what they may see and grant."""

import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal

from sidecar.admin.problems import FieldError, pointer_of
from sidecar.config.build.config import Config
from sidecar.config.document import AdminToken
from sidecar.core.client_address import address_subject
from sidecar.core.model import EVERY, Bucket, Quota, Subject, Window
from sidecar.core.policy import Catalogue
from sidecar.core.units import Clock
from sidecar.limiter.port import Limiter

Rights = Literal["read", "write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """An authenticated administrator."""

    name: str
    """Name of the admin token."""
    rights: Rights
    tenant: str | None = None
    """The administrator sees and changes keys of this tenant only; None: of all tenants."""
    scopes: tuple[str, ...] | None = None
    """Scopes that an administrator of one tenant may grant; None: every scope of the catalogue, but no wildcard."""
    plans: tuple[str, ...] | None = None
    """Plans that an administrator of one tenant may give to a key; None: every plan, and no plan."""

    @property
    def may_write(self) -> bool:
        return self.rights == "write"

    def sees(self, tenant: str | None) -> bool:
        """Whether this administrator may see keys of `tenant`."""
        return self.tenant is None or tenant == self.tenant

    def ungrantable(self, scopes: Iterable[str], catalogue: Catalogue) -> list[str]:
        """Those of `scopes` that this administrator may not grant.

        A wildcard also covers scopes that are added later, so it must be listed itself to be granted.
        """
        if self.tenant is None or (self.scopes is not None and EVERY in self.scopes):
            return []
        own = tuple(catalogue.scopes) if self.scopes is None else self.scopes
        reach = catalogue.expand(own)
        return [
            scope
            for scope in scopes
            if scope not in own and (is_wildcard(scope) or not catalogue.expand([scope]) <= reach)
        ]

    def may_plan(self, plan: str | None) -> bool:
        """Whether this administrator may give `plan` to a key."""
        return self.tenant is None or self.plans is None or plan in self.plans

    def grantable(self, catalogue: Catalogue) -> list[str]:
        """The scopes of the catalogue that this administrator may grant, in its order, without wildcards."""
        return [scope for scope in catalogue.scopes if not self.ungrantable([scope], catalogue)]

    def plans_of(self, plans: Mapping[str, object]) -> list[str]:
        """Those of `plans` that this administrator may give to a key, in their order."""
        return [plan for plan in plans if self.may_plan(plan)]


def is_wildcard(scope: str) -> bool:
    return scope == EVERY or scope.endswith(":*")


# From an admin token to its administrator.


_FAILURES: Final = Quota(
    name="admin_failures", limit=20, period=60, burst=20, window=Window.BUCKET, by=(Subject.ADDRESS,)
)
"""Wrong tokens from one address: a burst of 20, then one every three seconds."""


class WrongToken(Exception):
    """The token is unknown."""


class TooManyFailures(Exception):
    """Too many wrong tokens came from this address. Until the time is over, wrong ones are refused like this."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


class Tokens:
    """The admin tokens in force. `limiter` is not shared with the configured quotas, whose names could collide.

    tokens: called at every check, so that a reload takes effect at once.
    """

    def __init__(self, tokens: Callable[[], Sequence[AdminToken]], limiter: Limiter, *, clock: Clock) -> None:
        self._tokens = tokens
        self._limiter = limiter
        self._clock = clock

    async def check(self, text: str, address: str) -> Admin:
        """Raises WrongToken, or TooManyFailures after too many wrong tokens from the address.

        A right token always passes: others behind the same proxy must not be able to lock administrators out, and
        tokens are too long to be guessed. The time that this takes does not depend on how much of a token was guessed.
        """
        admin = self.by_digest(digest_of(text))
        if admin is not None:
            return admin
        bucket = Bucket(quota=_FAILURES, subject=(address_subject(address),), limit=_FAILURES.limit)
        taken = await self._limiter.take([bucket], self._clock.seconds())
        if taken.refused is not None:
            raise TooManyFailures(taken.refused.retry_after_seconds)
        raise WrongToken

    def by_digest(self, digest: bytes) -> Admin | None:
        """The administrator whose token has this digest, if the token is still in force."""
        found = None
        for token in self._tokens():
            if hmac.compare_digest(token.digest, digest):
                found = token
        if found is None:
            return None
        return Admin(name=found.name, rights=found.rights, tenant=found.tenant, scopes=found.scopes, plans=found.plans)


def digest_of(text: str) -> bytes:
    """The SHA-256 of an admin token, as in the configuration."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


# Sessions of the web pages. They are kept in memory only: a restart signs everyone out.


IDLE_SECONDS: Final = 2 * 3600
LONGEST_SECONDS: Final = 12 * 3600
_MAX_SESSIONS: Final = 1_000
"""One more ends the oldest session."""
_MAX_SESSIONS_PER_TOKEN: Final = 50
"""So that nobody can end others' sessions by signing in repeatedly."""


@dataclass(slots=True, kw_only=True)
class Session:
    """A signed-in browser. `digest` is that of the admin token, which is looked up again at every request."""

    digest: bytes
    proof: str
    """The CSRF token in each form of this session: no other site can send such a form."""
    started: float
    last_used: float

    def proves(self, proof: str) -> bool:
        return hmac.compare_digest(self.proof.encode(), proof.encode("utf-8", "surrogatepass"))


class Sessions:
    """Sessions by id. Only the browser's cookie holds the id. new_token: makes 128 random bits."""

    def __init__(self, *, clock: Clock, new_token: Callable[[], str]) -> None:
        self._clock = clock
        self._new_token = new_token
        self._sessions: dict[str, Session] = {}

    def begin(self, digest: bytes) -> str:
        """Start a session, and return its id."""
        now = self._clock.seconds()
        for old in [name for name, session in self._sessions.items() if _is_over(session, now)]:
            del self._sessions[old]
        own = [name for name, session in self._sessions.items() if session.digest == digest]
        for old in own[: max(0, len(own) + 1 - _MAX_SESSIONS_PER_TOKEN)]:
            del self._sessions[old]
        while len(self._sessions) >= _MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session_id = self._new_token()
        self._sessions[session_id] = Session(digest=digest, proof=self._new_token(), started=now, last_used=now)
        return session_id

    def find(self, session_id: str, *, used: bool = True) -> Session | None:
        """The session, whose idle time restarts if it is `used`; None if it is unknown or over."""
        session, now = self._sessions.get(session_id), self._clock.seconds()
        if session is None:
            return None
        if _is_over(session, now):
            del self._sessions[session_id]
            return None
        if used:
            session.last_used = now
        return session

    def end(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)


def _is_over(session: Session, now: float) -> bool:
    return not (0 <= now - session.started < LONGEST_SECONDS and 0 <= now - session.last_used < IDLE_SECONDS)


# What an administrator of one tenant may not give to a key.


def tenant_errors(admin: Admin, tenant: str | None) -> Iterator[FieldError]:
    if not admin.sees(tenant):
        yield FieldError(pointer="/tenant", detail="this admin token may not manage keys of this tenant")


def scope_errors(
    admin: Admin, scopes: Iterable[str], config: Config, *, held: Iterable[str] = ()
) -> Iterator[FieldError]:
    """The key may keep the scopes that it has (`held`)."""
    requested = list(scopes)
    forbidden = {*admin.ungrantable(requested, config.catalogue)} - {*held}
    for index, scope in enumerate(requested):
        if scope in forbidden:
            yield FieldError(pointer=f"/scopes/{index}", detail=f"this admin token may not grant {scope!r}")


def plan_errors(admin: Admin, plan: str | None) -> Iterator[FieldError]:
    if not admin.may_plan(plan):
        allowed = ", ".join(admin.plans or ()) or "none"
        yield FieldError(pointer="/plan", detail=f"this admin token may give these plans only: {allowed}")


def quota_errors(admin: Admin, quotas: Mapping[str, int], plan: str | None, config: Config) -> Iterator[FieldError]:
    """A key's own limit takes precedence over its plan's, so it must not be higher."""
    if admin.tenant is None:
        return
    planned = config.plans.get(plan or "", {})
    for name, limit in quotas.items():
        most = planned.get(name, config.quotas[name].limit) if name in config.quotas else None
        if most is not None and limit > most:
            detail = f"this admin token may give at most {most}, the limit of the plan"
            yield FieldError(pointer=pointer_of(("quotas", name)), detail=detail)
