"""Which routes a key may use, and why, before there is a request."""

from collections.abc import Iterable, Iterator

from sidecar.config.build.config import Config
from sidecar.core.model import EVERY, ApiKey, Policy, Route
from sidecar.core.policy import missing_scopes


def allowed_routes(config: Config, key: ApiKey) -> list[Route]:
    """Return the routes that `key` allows, in the configuration's order."""
    scopes = config.catalogue.expand(key.scopes)
    return [route for route in config.routes if _opens(route.policy, key, scopes)]


def routes_for_scope(config: Config, scope: str) -> list[Route]:
    """Return the routes that require scopes, and none beyond `scope` and the scopes it includes."""
    scopes = config.catalogue.expand([scope])
    return [
        route
        for route in config.routes
        if (route.policy.any_scopes or route.policy.all_scopes) and not missing_scopes(route.policy, scopes)
    ]


def requirements(policy: Policy) -> str:
    """Describe what a policy requires."""
    return ", ".join(_requirements(policy)) or "any valid key"


def charges(policy: Policy) -> str:
    """Return the names of the quotas that a policy counts, with the cost of a request if it is not one."""
    return ", ".join(
        charge.quota.name if charge.cost == 1 else f"{charge.quota.name} ({charge.cost} each)"
        for charge in policy.charges
    )


def _opens(policy: Policy, key: ApiKey, scopes: frozenset[str]) -> bool:
    if policy.public:
        return True
    if missing_scopes(policy, scopes):
        return False
    if policy.tenant_param and key.tenant is None:
        return False
    if policy.environment_param and key.environment is None:
        return False
    return not policy.environments or key.environment == EVERY or key.environment in policy.environments


def _requirements(policy: Policy) -> Iterator[str]:
    if policy.public:
        yield "public"
    if policy.any_scopes:
        yield _joined(policy.any_scopes, " or ")
    if policy.all_scopes:
        yield _joined(policy.all_scopes, " and ")
    if policy.tenant_param:
        yield f"{{{policy.tenant_param}}} is the key's tenant"
    if policy.environment_param:
        yield f"{{{policy.environment_param}}} is the key's environment"
    if policy.environments:
        yield f"keys of {_joined(policy.environments, ' or ')}"


def _joined(names: Iterable[str], conjunction: str) -> str:
    return conjunction.join(sorted(names))
