"""What is known about a request while the gate decides on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from sidecar.core.errors import Reason
from sidecar.core.model import Allow, ApiKey, Deny, Headers, Principal, QuotaState, Route, Taken, WouldDeny
from sidecar.core.routing import Match
from sidecar.gate.compile import PrincipalContext
from sidecar.keys.cache import CacheEntry

NOTHING_TAKEN: Final = Taken(states=())


class KnownCredential(Struct, frozen=True, gc=False):
    """A credential in a usual place. digest: SHA-256 of its text."""

    digest: bytes
    text: bytes

    def __repr__(self) -> str:
        return "KnownCredential()"


class Understood(Struct, frozen=True, gc=False):
    """What a request asks for, if its path has one reading and no part of it is refused on its own.

    target: for the upstream. kept: headers to forward. way: the values of the header in which trusted proxies describe
    the path of the request.
    """

    match: Match | None
    target: str
    kept: list[tuple[bytes, bytes]]
    host: bytes
    request_id: str = ""
    credential: KnownCredential | None = None
    way: Sequence[bytes] = ()


@dataclass(slots=True)
class RequestState:
    """What is known about a request so far; part of the decision. Only `decide` and `_deny` write to it."""

    client_address: str
    request_id: str = ""
    route: Route | None = None
    entry: CacheEntry | None = None
    context: PrincipalContext | None = None
    taken: Taken = NOTHING_TAKEN
    left: tuple[QuotaState, ...] = ()
    """States of every quota of the key, if the response reports them."""
    key_in_query: bool = False
    foreign: bool = False
    """Whether the credential is not ours."""
    paths: Sequence[str] = ()
    """Every reading of the path."""

    @property
    def principal(self) -> Principal | None:
        return self.context.principal if self.context else None

    @property
    def key(self) -> ApiKey | None:
        """The request's valid key."""
        return self.context.principal.key if self.context else None

    def allow(
        self, route: Route, *, target: str, host: bytes, headers: Headers, would_deny: WouldDeny | None = None
    ) -> Allow:
        return Allow(
            route=route,
            principal=self.principal,
            target=target,
            headers=headers,
            host=host,
            request_id=self.request_id,
            client_address=self.client_address,
            quota_states=self.taken.states,
            key_in_query=self.key_in_query,
            quotas_left=self.left,
            pass_through=self.foreign,
            would_deny=would_deny,
        )

    def deny(self, reason: Reason) -> Deny:
        return Deny(
            reason=reason,
            route=self.route,
            principal=self.principal,
            key=self.entry.key if self.entry else None,
            request_id=self.request_id,
            client_address=self.client_address,
            quota_states=self.taken.states,
            refused_quota=self.taken.refused,
            pass_through=self.foreign,
        )
