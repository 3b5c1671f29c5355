"""Which keys a policy lets pass, and what keeps the others out, without a request."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sidecar.config.build.config import Config
from sidecar.core.model import ApiKey, Policy, Route
from sidecar.core.policy import Catalogue, missing_scopes, takes_environment


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRoute:
    """A route that a key may not use."""

    route: Route
    missing: frozenset[str]
    """Missing scopes: all required ones that the key lacks, or the alternatives of which one would do."""
    opened_by: Sequence[str]
    """Scopes of the catalogue that would each let the key pass."""
    bar: str
    """As from `bar_of`."""


def opens(policy: Policy, key: ApiKey, scopes: frozenset[str]) -> bool:
    """Whether the key may pass with some request. scopes: those of the key, including implied ones."""
    return not bar_of(policy, key) and (policy.public or not missing_scopes(policy, scopes))


def bar_of(policy: Policy, key: ApiKey) -> str:
    """What keeps the key out regardless of its scopes; empty if nothing does."""
    if policy.refuses_keys is not None:
        return "no key may pass"
    if policy.public:
        return ""
    if policy.deny:
        return "nobody may pass"
    if policy.tenant_param and key.tenant is None:
        return "the key has no tenant"
    if policy.environment_param and key.environment is None:
        return "the key has no environment"
    return "" if takes_environment(policy, key) else f"only keys of {' or '.join(sorted(policy.environments))} may pass"


def closed_routes(config: Config, key: ApiKey) -> list[ClosedRoute]:
    """The routes that `key` may not use, in the configuration's order."""
    held = config.catalogue.expand(key.scopes)
    closure = {name: config.catalogue.expand([name]) for name in config.catalogue.scopes}
    order = {name: at for at, name in enumerate(closure)}
    granting: dict[str, list[str]] = {}
    for name, scopes in closure.items():
        for scope in scopes:
            granting.setdefault(scope, []).append(name)
    found = []
    for route in config.routes:
        if not opens(route.policy, key, held):
            missing = missing_scopes(route.policy, held) - {""}
            useful = sorted({name for scope in missing for name in granting.get(scope, ())}, key=order.__getitem__)
            opened_by = tuple(name for name in useful if opens(route.policy, key, held | closure[name]))
            bar = bar_of(route.policy, key)
            found.append(ClosedRoute(route=route, missing=missing, opened_by=opened_by, bar=bar))
    return found


def scopes_used(policy: Policy, granted: Iterable[str], catalogue: Catalogue) -> list[str]:
    """The granted scopes of a key that satisfy the policy."""
    named = policy.any_scopes | policy.all_scopes
    return [scope for scope in granted if catalogue.expand([scope]) & named]
