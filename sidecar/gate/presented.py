"""What a request presents as its credential, and how it is kept from whoever must not see it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from sidecar.config.build.config import Config
from sidecar.core.credentials import Copies, Credential, CredentialRules
from sidecar.core.errors import Denied
from sidecar.core.headers import Memory, SortedHeaders
from sidecar.core.model import RequestHead
from sidecar.core.target import Target
from sidecar.core.upstream_request import Injection
from sidecar.gate.compile import key_format
from sidecar.gate.requests import KnownCredential, RequestState

_MOST_MALFORMED: Final = 10_000


class KeyForms:
    """Knows by its form alone whether a text may be a key; other texts are refused without asking the store."""

    def __init__(self, config: Config) -> None:
        self._format = key_format(config)
        self._prefixes = tuple(config.keys.environments.values())
        self._foreign = tuple(keys.prefix for keys in config.keys.imported)
        self._foreign_like_ours = tuple(prefix for prefix in self._foreign if prefix.startswith(self._prefixes))
        self._malformed: Memory[bool] = Memory(_MOST_MALFORMED)
        """SHA-256 of texts that cannot be keys: a client sends its mistyped key again and again."""

    def may_be_stored(self, text: str) -> bool:
        """Keys made elsewhere have no form to check; one that begins like ours must have ours, or be listed."""
        if text.startswith(self._prefixes):
            return self._format.check(text, self._prefixes) is not None or text.startswith(self._foreign_like_ours)
        return text.startswith(self._foreign)

    def may_be_a_key(self, credential: KnownCredential) -> bool:
        """As `may_be_stored`, and cheap for one that was refused before."""
        digest = credential.digest
        if digest in self._malformed.young or self._malformed.recall(digest):
            return False
        if self.may_be_stored(credential.text.decode()):
            return True
        self._malformed.learn(digest, True)
        return False


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
