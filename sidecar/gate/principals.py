"""The principal of a key, and what else follows from the key alone: worked out once, not for each request."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from sidecar.core.model import Bucket, Headers, Principal, Route
from sidecar.core.policy import valid_until
from sidecar.core.quotas import Plans, buckets_for, depends_on_address
from sidecar.core.scopes import Catalogue
from sidecar.core.upstream_request import IdentityHeaders
from sidecar.keys.cache import CacheEntry

_SCOPE_SETS = 1024
"""Sets of granted scopes that are kept expanded: most keys share a few."""
_BUCKETS = 16_384
"""Pairs of key and route whose buckets are kept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrincipalContext:
    """A principal, and the headers and times of its key. Compared by identity: each is made of one cache entry."""

    principal: Principal
    identity: Headers
    valid_until: float
    """Unix microseconds; from then on the key's status must be checked, to say why it is not valid."""


class PrincipalCompiler:
    """Makes contexts under one configuration, and remembers them. size: how many keys are remembered.

    A full memory is emptied, and active keys come back with their next request. A key that was read again from the
    store has another cache entry, so its old context is never found.
    """

    def __init__(self, catalogue: Catalogue, identity: IdentityHeaders, plans: Plans, *, size: int) -> None:
        self._expand = lru_cache(maxsize=_SCOPE_SETS)(catalogue.expand)
        self._identity, self._plans, self._size = identity, plans, size
        self._contexts: dict[CacheEntry, PrincipalContext] = {}
        self._buckets: dict[tuple[PrincipalContext, str], Sequence[Bucket]] = {}
        """By context and route name, where no quota of the route depends on the address."""

    def of(self, entry: CacheEntry) -> PrincipalContext:
        return self._contexts.get(entry) or self._compile(entry)

    def buckets(self, route: Route, context: PrincipalContext | None, address: str) -> Sequence[Bucket]:
        """What a request on `route` takes from; `address` is the client's."""
        if context is None:
            return buckets_for(route.policy.charges, key=None, address=address, route=route.name, plans=self._plans)
        found = self._buckets.get((context, route.name))
        return self._compile_buckets(route, context, address) if found is None else found

    def _compile(self, entry: CacheEntry) -> PrincipalContext:
        key = entry.key
        context = PrincipalContext(
            principal=Principal(key=key, scopes=self._expand(key.scopes)),
            identity=self._identity.of_key(key),
            valid_until=valid_until(key),
        )
        if len(self._contexts) >= self._size:
            self._contexts.clear()
        self._contexts[entry] = context
        return context

    def _compile_buckets(self, route: Route, context: PrincipalContext, address: str) -> Sequence[Bucket]:
        charges, key = route.policy.charges, context.principal.key
        buckets = buckets_for(charges, key=key, address=address, route=route.name, plans=self._plans)
        if not depends_on_address(charges):
            if len(self._buckets) >= _BUCKETS:
                self._buckets.clear()
            self._buckets[context, route.name] = buckets
        return buckets
