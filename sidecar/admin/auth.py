"""Who administers, and how far it reaches."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from sidecar.core.model import EVERY
from sidecar.core.scopes import Catalogue

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
