"""From the token that someone presents to the administrator it stands for."""

import hmac
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final

from sidecar.admin.auth import Admin
from sidecar.config.settings import AdminToken
from sidecar.core.client_address import address_subject
from sidecar.core.model import Bucket, Quota, Subject, Window
from sidecar.limiter.port import Limiter

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
