"""Who calls, with everything that follows from the key alone worked out once for as long as the key stands."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from sidecar.core.model import Bucket, Headers, Principal, Route
from sidecar.core.policy import valid_until
from sidecar.core.quotas import Plans, buckets_for, depends_on_address
from sidecar.core.scopes import Catalogue
from sidecar.core.upstream_request import IdentityHeaders
from sidecar.keys.cache import CacheEntry

_SCOPE_SETS = 1024
"""Granted together, and kept expanded: most keys share a few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipalContext:
    """A principal, and the headers and buckets of its key."""

    principal: Principal
    identity: Headers
    valid_until: float
    """Unix microseconds; what is not good any longer has to be looked at to say why."""
    compiler: "PrincipalCompiler"
    buckets: dict[str, Sequence[Bucket]] = field(default_factory=dict)
    """By route name, where no quota of the route depends on the address."""


class PrincipalCompiler:
    """Makes callers under one configuration."""

    def __init__(self, catalogue: Catalogue, identity: IdentityHeaders, plans: Plans) -> None:
        self._expand = lru_cache(maxsize=_SCOPE_SETS)(catalogue.expand)
        self._identity, self._plans = identity, plans

    def of(self, known: CacheEntry) -> PrincipalContext:
        """A key that was read anew, or was known under another configuration, is worked out anew."""
        caller = known.caller
        if not isinstance(caller, PrincipalContext) or caller.compiler is not self:
            key = known.key
            caller = known.caller = PrincipalContext(
                principal=Principal(key=key, scopes=self._expand(key.scopes)),
                identity=self._identity.of_key(key),
                valid_until=valid_until(key),
                compiler=self,
            )
        return caller

    def buckets(self, route: Route, caller: PrincipalContext | None, address: str) -> Sequence[Bucket]:
        """What a request on `route` takes from; `address` is the client's."""
        known = caller.buckets.get(route.name) if caller else None
        if known is None:
            charges, key = route.policy.charges, caller.principal.key if caller else None
            known = buckets_for(charges, key=key, address=address, route=route.name, plans=self._plans)
            if caller and not depends_on_address(charges):
                caller.buckets[route.name] = known
        return known
