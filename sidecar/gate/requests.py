"""The state of a request while the gate decides on it, and the credential that the request presents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from msgspec import Struct

from sidecar.core.credentials import Copies, Credential, CredentialRules
from sidecar.core.errors import Denied, Reason
from sidecar.core.headers import SortedHeaders
from sidecar.core.model import Allow, ApiKey, Deny, Headers, Principal, QuotaState, RequestHead, Route, Taken, WouldDeny
from sidecar.core.routing import Match
from sidecar.core.target import Target
from sidecar.core.upstream_request import Injection
from sidecar.gate.compile import PrincipalContext
from sidecar.keys.cache import CacheEntry

NOTHING_TAKEN: Final = Taken(states=())


class KnownCredential(Struct, frozen=True, gc=False):
    """A credential that stands where keys usually do. digest: SHA-256 of its text."""

    digest: bytes
    text: bytes

    def __repr__(self) -> str:
        return "KnownCredential()"


class Understood(Struct, frozen=True, gc=False):
    """What a request asks for, where its path has one reading and no part of it is refused by itself.

    target: for the upstream. kept: headers that pass on. way: the values of the header in which trusted proxies tell
    the way that it came.
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
    """What is known of a request so far, for the decision to carry. Only `decide` and `_deny` write to it."""

    client_address: str
    request_id: str = ""
    route: Route | None = None
    entry: CacheEntry | None = None
    context: PrincipalContext | None = None
    taken: Taken = NOTHING_TAKEN
    left: tuple[QuotaState, ...] = ()
    """Of every quota of the key, where the response tells it."""
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
        """The valid one that it has."""
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


class Presented:
    """Finds the credential of a request and its copies, and keeps it out of the request id, which others may see."""

    def __init__(self, credentials: CredentialRules, injection: Injection, new_request_id: Callable[[], str]) -> None:
        self._credentials, self._injection, self._new_request_id = credentials, injection, new_request_id
        self.without_key = replace(injection, forward_credential=False)
        """For what stands where keys do and is none: the upstream must not take it for one that was verified."""

    def credential(
        self,
        head: RequestHead,
        received: SortedHeaders,
        target: Target,
        host: bytes,
        state: RequestState,
        remove_copies: bool,
    ) -> tuple[Credential | None, Copies | None]:
        """Raises Denied where it is malformed, doubled, or stands where it cannot or may not be removed."""
        credential = self._credentials.find(received.fields, target.query)
        if self._credentials.may_pass and (credential is None or credential.foreign):
            # A proxy that forwards by itself hands on its client's fields, forwarding fields included.
            reaching = self._injection.reaching(head, received, from_proxy=remove_copies)
            credential = self._credentials.foreign(reaching)
        return credential, self._copies(self._injection, credential, received, target, host, state, remove_copies)

    def no_key(
        self, received: SortedHeaders, target: Target, host: bytes, state: RequestState, remove_copies: bool
    ) -> tuple[Credential | None, Copies | None]:
        """What stands where keys do and is no valid one, to be removed. Raises Denied where it is not one thing."""
        try:
            credential = self._credentials.find(received.fields, target.query)
        except Denied:
            credential = self._credentials.lone(received.fields, target.query)
        if credential is not None and credential.foreign:
            credential = self._credentials.lone(received.fields, target.query)
        return credential, self._copies(self.without_key, credential, received, target, host, state, remove_copies)

    def _copies(
        self,
        injection: Injection,
        credential: Credential | None,
        received: SortedHeaders,
        target: Target,
        host: bytes,
        state: RequestState,
        remove_copies: bool,
    ) -> Copies | None:
        if credential is not None and not credential.foreign and not remove_copies:
            injection.check_beside_key(received)
        copies = injection.copies(credential)
        state.key_in_query = credential is not None and any(source.kind == "query" for source in credential.sources)
        if credential is not None and copies is not None:
            injection.check_copies(target, received, credential, copies, host=host, remove=remove_copies)
            if copies.are_in_text(state.request_id):
                state.request_id = self._new_request_id()
        return copies
