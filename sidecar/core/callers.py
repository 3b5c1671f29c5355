"""Who calls, with everything that follows from the key alone worked out once for as long as the key stands."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sidecar.core.charges import Plans, buckets_for, depends_on_address
from sidecar.core.identity import IdentityHeaders
from sidecar.core.model import ApiKey, Bucket, Headers, Principal, Route
from sidecar.core.scopes import Catalogue


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A principal, and the headers and buckets of its key."""

    principal: Principal
    identity: Headers
    buckets: dict[str, Sequence[Bucket]] = field(default_factory=dict)
    """By route name, where no quota of the route depends on the address."""


class Callers:
    """Callers by key, at most `size` of them, under one configuration."""

    def __init__(self, catalogue: Catalogue, identity: IdentityHeaders, plans: Plans, *, size: int) -> None:
        self._catalogue, self._identity, self._plans = catalogue, identity, plans
        self._size = size
        self._known: dict[str, Caller] = {}

    def of(self, key: ApiKey) -> Caller:
        """A key that was read anew is another object, and is worked out anew."""
        caller = self._known.get(key.id)
        if caller is None or caller.principal.key is not key:
            if len(self._known) >= self._size:
                self._known.clear()
            principal = Principal(key=key, scopes=self._catalogue.expand(key.scopes))
            caller = self._known[key.id] = Caller(principal=principal, identity=self._identity.of_key(key))
        return caller

    def buckets(self, route: Route, caller: Caller | None, address: str) -> Sequence[Bucket]:
        """What a request on `route` takes from; `address` is the client's."""
        known = caller.buckets.get(route.name) if caller else None
        if known is None:
            charges, key = route.policy.charges, caller.principal.key if caller else None
            known = buckets_for(charges, key=key, address=address, route=route.name, plans=self._plans)
            if caller and not depends_on_address(charges):
                caller.buckets[route.name] = known
        return known
