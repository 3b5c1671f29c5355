"""What a request presents as its credential, and how it is kept from whoever must not see it."""

from collections.abc import Callable
from dataclasses import replace

from sidecar.core.credentials import Copies, Credential, CredentialRules
from sidecar.core.errors import Denied
from sidecar.core.headers import SortedHeaders
from sidecar.core.model import RequestHead
from sidecar.core.target import Target
from sidecar.core.upstream_request import Injection
from sidecar.gate.requests import RequestState


class Presented:
    """Finds it, and its copies. It stays out of the request id, which the upstream, the logs and the client see."""

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
