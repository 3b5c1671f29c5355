"""What a gate is made of: parts of the configuration, compiled once for all the requests that it decides on."""

from collections.abc import Sequence

from sidecar.config.build.config import Config
from sidecar.core.apikey import KeyFormat
from sidecar.core.client_address import TrustedProxies
from sidecar.core.credentials import CredentialRules
from sidecar.core.error_responses import ErrorResponses
from sidecar.core.headers import HeaderRules
from sidecar.core.model import EVERY, Policy, Route
from sidecar.core.rate_limit_headers import RateLimitFields
from sidecar.core.routing import MethodRules
from sidecar.core.upstream_request import ADMIN_COOKIE, Injection
from sidecar.keys.validation import KeyRules

# What the configuration asks of a key.


def key_format(config: Config) -> KeyFormat:
    """Raises ValueError where the lengths do not go together."""
    return KeyFormat(length=config.keys.length, checksum_length=config.keys.checksum_length)


def key_rules(config: Config) -> KeyRules:
    """Raises ValueError where the settings of keys do not go together."""
    return KeyRules(
        format=key_format(config),
        environments=config.keys.environments,
        prefix_length=config.keys.prefix_length,
        default_scopes=config.keys.default_scopes,
        default_plan=config.keys.default_plan,
        catalogue=config.catalogue,
        plans=config.plans,
        quotas=config.quotas,
    )


def key_prefixes(config: Config) -> Sequence[str]:
    """What keys begin with, those made elsewhere too; an empty one where they begin with anything."""
    return (*config.keys.environments.values(), *(keys.prefix for keys in config.keys.imported))


def credential_rules(config: Config) -> CredentialRules:
    keys = config.keys
    one_space = keys.spaces_after_scheme == "one"
    return CredentialRules(keys.sources, keys.pass_through, key_prefixes(config), one_space=one_space)


def header_rules(config: Config, credentials: CredentialRules) -> HeaderRules:
    return HeaderRules(
        identity=config.identity.headers,
        strip=config.identity.strip,
        keep=config.identity.keep,
        credential=credentials.header_names,
        passing=credentials.passing_names,
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
        withheld_cookies=() if config.admin is None else (ADMIN_COOKIE,),
    )


def responses(config: Config) -> ErrorResponses:
    shown = config.rate_limit_headers
    return ErrorResponses(
        config.errors,
        config.default_error,
        realm=config.realm,
        sources=config.keys.sources,
        rate_limits=RateLimitFields(x=shown.x, reset=shown.reset, ietf=shown.ietf),
    )


def method_rules(config: Config) -> MethodRules:
    return MethodRules({method for route in config.routes for method in route.methods} - {EVERY})


def unmatched_route(config: Config) -> Route:
    """The route that a request which no route matches is charged by."""
    return Route(name="", methods=frozenset(), pattern="", policy=Policy(charges=config.unmatched_charges))
