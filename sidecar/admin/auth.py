"""Who administers, and how far it reaches."""

import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal

from sidecar.admin.problems import Flaw, pointer_of
from sidecar.config.build.config import Config
from sidecar.config.document import AdminToken
from sidecar.core.client_address import address_subject
from sidecar.core.model import EVERY, Bucket, Quota, Subject, Window
from sidecar.core.scopes import Catalogue
from sidecar.limiter.port import Limiter

Rights = Literal["read", "write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """Whoever presented an admin token."""

    name: str
    """The token's."""
    rights: Rights
    tenant: str | None = None
    """The one tenant whose keys are seen and changed; None is all of them."""
    scopes: tuple[str, ...] | None = None
    """What an administrator of one tenant may grant; None is every scope of the catalogue, but no wildcard."""
    plans: tuple[str, ...] | None = None
    """Plans that an administrator of one tenant may put a key on; None is all of them, and none."""

    @property
    def may_write(self) -> bool:
        return self.rights == "write"

    def sees(self, tenant: str | None) -> bool:
        """Whether keys of `tenant` exist for this administrator."""
        return self.tenant is None or tenant == self.tenant

    def ungrantable(self, scopes: Iterable[str], catalogue: Catalogue) -> list[str]:
        """Those of `scopes` that go beyond what this administrator may grant.

        A wildcard holds for scopes that are yet to come, so only a listed one may be granted.
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
        """Whether a key may be put on `plan`."""
        return self.tenant is None or self.plans is None or plan in self.plans

    def grantable(self, catalogue: Catalogue) -> list[str]:
        """The scopes of the catalogue that may be granted, in its order; wildcards are not among them."""
        return [scope for scope in catalogue.scopes if not self.ungrantable([scope], catalogue)]

    def plans_of(self, plans: Mapping[str, object]) -> list[str]:
        """The plans that a key may be put on, in the configuration's order."""
        return [plan for plan in plans if self.may_plan(plan)]


def is_wildcard(scope: str) -> bool:
    return scope == EVERY or scope.endswith(":*")


# From the token that someone presents to the administrator it stands for.


_FAILURES: Final = Quota(
    name="admin_failures", limit=20, period=60, burst=20, window=Window.BUCKET, by=(Subject.ADDRESS,)
)
"""Wrong tokens from one address: 20 at once, and one more every three seconds."""


class WrongToken(Exception):
    """Nobody's token."""


class Slowed(Exception):
    """Too many wrong tokens came from this address; until then no token of it is looked at."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


class Tokens:
    """The admin tokens in force. `limiter` is one of its own, so that no configured quota shares its names.

    clock: Unix seconds. tokens: asked at every check, so that a reload counts at once.
    """

    def __init__(
        self, tokens: Callable[[], Sequence[AdminToken]], limiter: Limiter, *, clock: Callable[[], float]
    ) -> None:
        self._tokens = tokens
        self._limiter = limiter
        self._clock = clock

    async def check(self, text: str, address: str) -> Admin:
        """Raises WrongToken, or Slowed where the address has guessed too often, whatever it presents now.

        The time it takes does not depend on how much of a token was guessed.
        """
        bucket = Bucket(quota=_FAILURES, subject=(address_subject(address),), limit=_FAILURES.limit)
        before = await self._limiter.peek([bucket], self._clock())
        if before.refused is not None:
            raise Slowed(before.refused.retry_after_seconds)
        admin = self.by_digest(digest_of(text))
        if admin is None:
            await self._limiter.take([bucket], self._clock())
            raise WrongToken
        return admin

    def by_digest(self, digest: bytes) -> Admin | None:
        """Of the token with this digest, where it still is in force."""
        found = None
        for token in self._tokens():
            if hmac.compare_digest(token.digest, digest):
                found = token
        if found is None:
            return None
        return Admin(name=found.name, rights=found.rights, tenant=found.tenant, scopes=found.scopes, plans=found.plans)


def digest_of(text: str) -> bytes:
    """Of an admin token, as the configuration holds it."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


# Who is signed in to the page. Held in memory only: a restart signs everyone out.


IDLE_SECONDS: Final = 2 * 3600
LONGEST_SECONDS: Final = 12 * 3600
_MOST: Final = 1_000
"""Past it, the session that was begun first ends."""
_MOST_OF_ONE: Final = 50
"""Of one admin token, so that nobody can end the sessions of others by signing in again and again."""


@dataclass(slots=True, kw_only=True)
class Session:
    """Someone's signing in. `digest` is that of the admin token, by which it is looked up at every request."""

    digest: bytes
    proof: str
    """Stands in each form of this session, so that no other site can send one."""
    begun: float
    seen: float

    def proves(self, proof: str) -> bool:
        return hmac.compare_digest(self.proof.encode(), proof.encode("utf-8", "surrogatepass"))


class Sessions:
    """Sessions by an id that only the browser's cookie holds. `clock` in Unix seconds; `new_token` makes 128 bits."""

    def __init__(self, *, clock: Callable[[], float], new_token: Callable[[], str]) -> None:
        self._clock = clock
        self._new_token = new_token
        self._sessions: dict[str, Session] = {}

    def begin(self, digest: bytes) -> str:
        """The id of a new session."""
        now = self._clock()
        for old in [name for name, session in self._sessions.items() if _is_over(session, now)]:
            del self._sessions[old]
        own = [name for name, session in self._sessions.items() if session.digest == digest]
        for old in own[: max(0, len(own) + 1 - _MOST_OF_ONE)]:
            del self._sessions[old]
        while len(self._sessions) >= _MOST:
            del self._sessions[next(iter(self._sessions))]
        session_id = self._new_token()
        self._sessions[session_id] = Session(digest=digest, proof=self._new_token(), begun=now, seen=now)
        return session_id

    def find(self, session_id: str) -> Session | None:
        """The session, and from now on it is idle anew; None for one that is over or never was."""
        session, now = self._sessions.get(session_id), self._clock()
        if session is None:
            return None
        if _is_over(session, now):
            del self._sessions[session_id]
            return None
        session.seen = now
        return session

    def end(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)


def _is_over(session: Session, now: float) -> bool:
    return not (0 <= now - session.begun < LONGEST_SECONDS and 0 <= now - session.seen < IDLE_SECONDS)


# What an administrator of one tenant may give to a key: nothing beyond its own reach.


def tenant_flaws(admin: Admin, tenant: str | None) -> Iterator[Flaw]:
    if not admin.sees(tenant):
        yield Flaw(pointer="/tenant", detail="this admin token is for keys of another tenant")


def scope_flaws(admin: Admin, scopes: Iterable[str], config: Config, *, held: Iterable[str] = ()) -> Iterator[Flaw]:
    """What the key has already (`held`) may stay."""
    given = list(scopes)
    beyond = {*admin.ungrantable(given, config.catalogue)} - {*held}
    for index, scope in enumerate(given):
        if scope in beyond:
            yield Flaw(pointer=f"/scopes/{index}", detail=f"this admin token may not grant {scope!r}")


def plan_flaws(admin: Admin, plan: str | None) -> Iterator[Flaw]:
    if not admin.may_plan(plan):
        offered = ", ".join(admin.plans or ()) or "none"
        yield Flaw(pointer="/plan", detail=f"this admin token may put keys on these plans only: {offered}")


def quota_flaws(admin: Admin, quotas: Mapping[str, int], plan: str | None, config: Config) -> Iterator[Flaw]:
    """A key's own limits win over its plan's, so that they are a way around it unless they are lower."""
    if admin.tenant is None:
        return
    planned = config.plans.get(plan or "", {})
    for name, limit in quotas.items():
        if name in config.quotas and limit > (most := planned.get(name, config.quotas[name].limit)):
            detail = f"this admin token may give {most} at most, which is what the plan gives"
            yield Flaw(pointer=pointer_of(("quotas", name)), detail=detail)
