"""What is computed once, not for each request: the parts of a gate, and the principal of a key."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sidecar.config.build.config import Config
from sidecar.config.policy import KeySettings
from sidecar.core.apikey import Hasher, KeyFormat
from sidecar.core.client_address import TrustedProxies
from sidecar.core.cors import SharingRules
from sidecar.core.credentials import CredentialRules
from sidecar.core.error_responses import ErrorResponses
from sidecar.core.headers import HeaderRules
from sidecar.core.model import EVERY, Bucket, Charge, Headers, Policy, Principal, Route, Source, Subject
from sidecar.core.policy import Catalogue, valid_until
from sidecar.core.quotas import ENDING_NAMES, Plans, RateLimitFields, buckets_for, depends_on_address
from sidecar.core.routing import MethodRules, RouteTable
from sidecar.core.upstream_request import ADMIN_COOKIES, IdentityHeaders, Injection
from sidecar.keys.cache import CacheEntry
from sidecar.keys.ports import Actor
from sidecar.keys.transfer.fields import LineRules, Origin
from sidecar.keys.validation import KeyRules

# What the configuration requires of a key.


def key_format(config: Config) -> KeyFormat:
    """Raises ValueError if the lengths contradict each other."""
    return KeyFormat(length=config.keys.length, checksum_length=config.keys.checksum_length)


def key_rules(config: Config) -> KeyRules:
    """Raises ValueError if the settings of keys contradict each other."""
    return KeyRules(
        format=key_format(config),
        environments=config.keys.environments,
        prefix_length=config.keys.prefix_length,
        default_scopes=config.keys.default_scopes,
        default_plan=config.keys.default_plan,
        catalogue=config.catalogue,
        plans=config.plans,
        quotas=config.quotas,
        required=config.keys.require,
        scopes_per_key=config.keys.scopes_per_key,
    )


def line_rules(config: Config, hasher: Hasher, *, now: int, actor: Actor, new_id: Callable[[], str] = str) -> LineRules:
    """What the configuration requires of a key in a file. now: microseconds. Raises ValueError as `key_rules` does."""
    origin = Origin(own=config.keys.environments, foreign=config.keys.imported, algorithms=hasher.algorithms)
    return LineRules(key_rules(config), origin, now=now, actor=actor, new_id=new_id)


def key_prefixes(config: Config) -> Sequence[str]:
    """The prefixes of keys, including those made elsewhere; an empty one if they may begin with anything."""
    return (*config.keys.environments.values(), *(keys.prefix for keys in config.keys.imported))


_LEAST_BODY = 16
"""Least letters and digits after a key's prefix; our own keys have at least 22."""


def key_pattern(config: Config) -> re.Pattern[bytes]:
    """Matches what looks like a key, anywhere. Keys without a prefix look like any text, and are not found."""
    prefixes = [re.escape(prefix.encode()) for prefix in key_prefixes(config) if prefix]
    return re.compile(rb"(?:%b)[0-9A-Za-z]{%d}" % (b"|".join(prefixes) or b"(?!)", _LEAST_BODY))


def credential_rules(config: Config) -> CredentialRules:
    keys = config.keys
    one_space = keys.spaces_after_scheme == "one"
    return CredentialRules(keys.sources, keys.pass_through, key_prefixes(config), one_space=one_space)


def header_rules(config: Config, credentials: CredentialRules) -> HeaderRules:
    return HeaderRules(
        identity=config.identity.own_headers,
        strip=config.identity.strip,
        keep=config.identity.keep,
        credential=credentials.header_names,
        passing=credentials.passing_names,
        lists=credentials.list_names,
        request_id=config.identity.request_id,
    )


def trusted_proxies(config: Config) -> TrustedProxies:
    return TrustedProxies(config.trusted_proxies, config.forwarded_header.lower().encode())


def injection(config: Config, rules: HeaderRules, proxies: TrustedProxies) -> Injection:
    return Injection(
        rules=rules,
        proxies=proxies,
        forward_credential=config.keys.forward_credential,
        remove_copies=config.keys.copies == "remove",
        strip_prefix=config.upstream.strip_prefix,
        add_prefix=config.upstream.add_prefix,
        named_prefixes={name: (at.strip_prefix, at.add_prefix) for name, at in config.upstreams.items()},
        keep_slash=config.keep_slash,
        withheld_cookies=() if config.admin is None else ADMIN_COOKIES,
        not_beside_key=_not_beside_key(config.keys),
    )


def _not_beside_key(keys: KeySettings) -> tuple[frozenset[bytes], tuple[str, ...]]:
    """Headers and cookies with credentials that are not ours. A place of our keys cannot hold another one as well."""
    if keys.beside_key == "keep":
        return frozenset(), ()
    headers, cookies = _names(keys.pass_through, "header"), _names(keys.pass_through, "cookie")
    others = {name.lower() for name in headers} - {name.lower() for name in _names(keys.sources, "header")}
    return frozenset(name.encode() for name in others), tuple(sorted(cookies - _names(keys.sources, "cookie")))


def _names(sources: Sequence[Source], kind: str) -> set[str]:
    return {source.name for source in sources if source.kind == kind}


def rate_limit_fields(config: Config) -> RateLimitFields:
    shown = config.rate_limit_headers
    return RateLimitFields(x=shown.x, reset=shown.reset, ietf=shown.ietf)


def sharing(config: Config) -> SharingRules:
    """Which responses other origins and caches may share."""
    templates = (*config.errors.values(), *([config.default_error] if config.default_error else []))
    own = [name for template in templates for name in template.headers or ()]
    names = (*rate_limit_fields(config).names, *ENDING_NAMES, "WWW-Authenticate", config.identity.request_id, *own)
    # Unmatched requests may also be forwarded, if they are only observed.
    return SharingRules(
        (*config.routes, config.unmatched),
        config.cors,
        sources=config.keys.sources,
        passing=config.keys.pass_through,
        added=names,
    )


def responses(config: Config) -> ErrorResponses:
    return ErrorResponses(
        config.errors,
        config.default_error,
        realm=config.realm,
        sources=config.keys.sources,
        rate_limits=rate_limit_fields(config),
    )


def method_rules(config: Config) -> MethodRules:
    return MethodRules({method for route in config.routes for method in route.methods} - {EVERY})


def route_table(config: Config) -> RouteTable:
    aliases = config.keys.environment_aliases
    return RouteTable(
        _every_route(config),
        case_sensitive=config.case_sensitive,
        environments=aliases,
        colon_verbs=config.colon == "verb",
    )


def _every_route(config: Config) -> Sequence[Route]:
    """`unmatched` is the least specific route of all, if it lets anything pass."""
    return (*config.routes, config.unmatched) if config.unmatched.policy.pass_through else config.routes


def every_quota(config: Config) -> Route:
    """A route that counts every quota of a key, except those that count by route. No request matches it."""
    quotas = [quota for quota in config.quotas.values() if Subject.ROUTE not in quota.by]
    policy = Policy(charges=tuple(Charge(quota=quota) for quota in quotas))
    return Route(name=_EVERY_QUOTA, methods=frozenset(), pattern="", policy=policy)


_EVERY_QUOTA = "(every quota)"
"""A name that no route can have."""
_SCOPE_SETS = 1024
"""Sets of granted scopes whose expansion is kept: most keys share a few."""
_BUCKETS = 16_384
"""Pairs of key and route whose buckets are kept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrincipalContext:
    """A principal, and the headers and times of its key. Compared by identity: each belongs to one cache entry."""

    principal: Principal
    identity: Headers
    valid_until: float
    """Unix microseconds; from then on the key's status must be checked, to find out why it is not valid."""


class PrincipalCompiler:
    """Makes contexts under one configuration, and caches them. size: how many keys are cached.

    A full cache is emptied, and active keys return with their next request. A key that was reread from the store has a
    new cache entry, so its old context is never found.
    """

    def __init__(self, catalogue: Catalogue, identity: IdentityHeaders, plans: Plans, *, size: int) -> None:
        self._expand = lru_cache(maxsize=_SCOPE_SETS)(catalogue.expand)
        self._identity, self._plans, self._size = identity, plans, size
        self._contexts: dict[CacheEntry, PrincipalContext] = {}
        self._buckets: dict[tuple[PrincipalContext, str], Sequence[Bucket]] = {}
        """By context and route name, if no quota of the route depends on the address."""

    def of(self, entry: CacheEntry) -> PrincipalContext:
        return self._contexts.get(entry) or self._compile(entry)

    def buckets(self, route: Route, context: PrincipalContext | None, address: str) -> Sequence[Bucket]:
        """The buckets that a request on `route` takes from; `address` is the client's."""
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
