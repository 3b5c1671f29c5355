"""The credential that a request presents, and how it is hidden from those who must not see it."""

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
    """Decides by form alone whether a text may be a key; other texts are refused without querying the store."""

    def __init__(self, config: Config) -> None:
        self._format = key_format(config)
        self._prefixes = tuple(config.keys.environments.values())
        self._foreign = tuple(keys.prefix for keys in config.keys.imported)
        self._foreign_like_ours = tuple(prefix for prefix in self._foreign if prefix.startswith(self._prefixes))
        self._malformed: Memory[bool] = Memory(_MOST_MALFORMED)
        """SHA-256 of texts that cannot be keys: a client repeats its mistyped key."""

    def may_be_stored(self, text: str) -> bool:
        """Keys made elsewhere have no form to check; a key with our prefix must have our form, or be listed."""
        if text.startswith(self._prefixes):
            return self._format.check(text, self._prefixes) is not None or text.startswith(self._foreign_like_ours)
        return text.startswith(self._foreign)

    def may_be_a_key(self, credential: KnownCredential) -> bool:
        """As `may_be_stored`, but cheap for a text that was refused before."""
        digest = credential.digest
        if digest in self._malformed.young or self._malformed.recall(digest):
            return False
        if self.may_be_stored(credential.text.decode()):
            return True
        self._malformed.learn(digest, True)
        return False


class Presented:
    """Finds the credential and its copies. Keeps it out of the request id, which upstream, logs and client see."""

    def __init__(self, credentials: CredentialRules, injection: Injection, new_request_id: Callable[[], str]) -> None:
        self._credentials, self._injection, self._new_request_id = credentials, injection, new_request_id
        self.without_key = replace(injection, forward_credential=False)
        """Removes credentials that are not keys from the places of keys: the upstream could take one for verified."""

    def credential(
        self,
        head: RequestHead,
        received: SortedHeaders,
        target: Target,
        host: bytes,
        state: RequestState,
        remove_copies: bool,
    ) -> tuple[Credential | None, Copies | None]:
        """Raises Denied if it is malformed, doubled, or in a place from which it cannot or must not be removed."""
        credential = self._credentials.find(received.fields, target.query)
        if self._credentials.may_pass and (credential is None or credential.foreign):
            # A proxy that forwards by itself passes on its client's fields, including forwarding fields.
            reaching = self._injection.reaching(head, received, from_proxy=remove_copies)
            credential = self._credentials.foreign(reaching)
        return credential, self._copies(self._injection, credential, received, target, host, state, remove_copies)

    def no_key(
        self, received: SortedHeaders, target: Target, host: bytes, state: RequestState, remove_copies: bool
    ) -> tuple[Credential | None, Copies | None]:
        """What is in the place of a key and is not a valid one, to be removed. Raises Denied if it is ambiguous."""
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
