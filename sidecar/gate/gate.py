"""The gate: a request head in, a decision out. Read `Gate.decide` first; it is the whole story."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, Protocol

from sidecar.config.build.config import Config
from sidecar.core.apikey import Hasher
from sidecar.core.client_address import address_subject
from sidecar.core.credentials import Credential
from sidecar.core.errors import Denied, Fault, Reason
from sidecar.core.headers import check_host
from sidecar.core.model import (
    Allow,
    ApiKey,
    Bucket,
    Decision,
    Deny,
    Headers,
    Principal,
    QuotaState,
    RequestHead,
    Route,
)
from sidecar.core.policy import authorize_all_readings, check_status
from sidecar.core.routing import NEVER_ROUTED, RouteTable
from sidecar.core.target import parse_target, readings
from sidecar.core.upstream_request import IdentityHeaders, request_id
from sidecar.gate import compile as compiled
from sidecar.gate.compile import key_format
from sidecar.gate.principals import PrincipalCompiler, PrincipalContext
from sidecar.keys.cache import MISS, CacheEntry, Miss
from sidecar.keys.ports import StoreUnavailable
from sidecar.limiter.port import Limiter

WRONG_KEY = frozenset(
    {Reason.INVALID_KEY, Reason.EXPIRED_KEY, Reason.DISABLED_KEY, Reason.REVOKED_KEY, Reason.RETIRED_KEY}
)
"""Refusals that count against the address they come from."""


class KeyFinder(Protocol):
    """Where the gate asks for keys: a cache over a store. Raises StoreUnavailable."""

    def peek(self, secret_digest: bytes) -> CacheEntry | Literal[Miss.MISS] | None: ...

    async def find(self, secret_digest: bytes, candidates: Callable[[], Mapping[bytes, str]]) -> CacheEntry | None: ...


@dataclass(slots=True)
class _RequestState:
    """What is known of a request so far; a refusal tells it."""

    client_address: str
    request_id: str = ""
    route: Route | None = None
    key: ApiKey | None = None
    caller: PrincipalContext | None = None
    states: tuple[QuotaState, ...] = ()
    refused_quota: QuotaState | None = None

    @property
    def principal(self) -> Principal | None:
        return self.caller.principal if self.caller else None


class Gate:
    """Decides under one configuration. A reload makes a new gate.

    clock: Unix seconds. new_request_id: makes one where the client sent none.
    """

    def __init__(
        self,
        config: Config,
        keys: KeyFinder,
        limiter: Limiter,
        *,
        hasher: Hasher,
        clock: Callable[[], float],
        new_request_id: Callable[[], str],
    ) -> None:
        self.config = config
        self._keys, self._limiter, self._hasher = keys, limiter, hasher
        self._clock, self._new_request_id = clock, new_request_id
        self._routes = RouteTable(config.routes, case_sensitive=config.case_sensitive)
        self._format = key_format(config)
        self._prefixes = tuple(config.keys.environments.values())
        self._foreign = tuple(keys.prefix for keys in config.keys.imported)
        self._credentials = compiled.credential_rules(config)
        self._identity = IdentityHeaders(config.identity.headers)
        self._proxies = compiled.trusted_proxies(config)
        self._id_header = config.identity.request_id.encode()
        self._id_field = self._id_header.lower()
        self._rules = compiled.header_rules(config, self._credentials)
        self._injection = compiled.injection(config, self._rules, self._proxies)
        self._callers = PrincipalCompiler(config.catalogue, self._identity, config.plans)
        self._unmatched = compiled.unmatched_route(config)

    async def decide(self, head: RequestHead) -> Decision:
        """Allow, or Deny with the reason; raises nothing that a client could cause."""
        trail = _RequestState(client_address=head.peer)
        try:
            seen = self._rules.classify(head.headers)
            trail.request_id = request_id(seen.fields, self._id_field) or self._new_request_id()
            trail.client_address = self._proxies.client_address(head.peer, seen.fields)
            _check_method(head)
            host = check_host(seen.fields.get(b"host"), head.version)
            target = parse_target(head.target, host.decode("ascii"))
            paths = (target.path,) if target.ordinary else readings(target.path)
            matches = [self._routes.match(head.method, path) for path in paths]
            trail.route = matches[0].route if matches[0] else None
            credential = self._credentials.find(seen.fields, target.query)
            trail.caller = await self._authenticate(credential, trail)
            match = authorize_all_readings(
                matches, trail.principal, foreign=credential is not None and credential.foreign
            )
            upstream_target = self._injection.target(target, paths, credential)
            await self._take(match.route, trail)
            headers = self._injection.headers(head, seen, credential, host=host, identity=self._told(trail))
            return _allowed(match.route, trail, target=upstream_target, host=host, headers=headers)
        except Denied as denied:
            return await self._deny(denied.reason, trail)
        except Fault as fault:
            return _refused(fault.reason, trail)

    async def revalidate(self, principal: Principal) -> Reason | None:
        """Why the key is not good any longer; None where it is, and where the store cannot tell."""
        stored = principal.key
        try:
            known = await self._keys.find(stored.digest, lambda: {stored.digest: stored.algorithm})
            if known is None:
                return Reason.INVALID_KEY
            check_status(known.key, int(self._clock() * 1_000_000))
        except Denied as denied:
            return denied.reason
        except StoreUnavailable:
            pass
        return None

    async def _authenticate(self, credential: Credential | None, trail: _RequestState) -> PrincipalContext | None:
        if credential is None or credential.foreign:
            return None
        known = await self._find(credential.text)
        if known is None:
            raise Denied(Reason.INVALID_KEY)
        trail.key, caller, now = known.key, self._callers.of(known), int(self._clock() * 1_000_000)
        if now >= caller.valid_until:
            check_status(known.key, now)
        return caller

    async def _find(self, text: str) -> CacheEntry | None:
        """What is in memory was well-formed; anything else must be, before the store is asked."""
        digest = sha256(text.encode("utf-8", "surrogatepass")).digest()
        try:
            known = self._keys.peek(digest)
            if known is not MISS:
                return known
            if not self._may_be_stored(text):
                return None
            return await self._keys.find(digest, lambda: self._hasher.candidates(text))
        except StoreUnavailable:
            raise Fault(Reason.STORE_UNAVAILABLE) from None

    def _may_be_stored(self, text: str) -> bool:
        """Keys made elsewhere have no form to check; one that begins like ours must have ours."""
        if text.startswith(self._prefixes):
            return self._format.check(text, self._prefixes) is not None
        return text.startswith(self._foreign)

    async def _take(self, route: Route, trail: _RequestState) -> None:
        if not route.policy.charges:
            return
        taken = await self._limiter.take(self._buckets(route, trail), self._clock())
        trail.states = taken.states
        if taken.refused is not None:
            trail.refused_quota = taken.refused
            raise Denied(Reason.QUOTA_EXCEEDED)

    def _buckets(self, route: Route, trail: _RequestState) -> Sequence[Bucket]:
        return self._callers.buckets(route, trail.caller, trail.client_address)

    def _told(self, trail: _RequestState) -> Headers:
        id_header = (self._id_header, trail.request_id.encode())
        if trail.caller is None:
            return (id_header,)
        by_request = self._identity.of_request(trail.caller.principal.key, trail.request_id)
        return (id_header, *trail.caller.identity, *by_request)

    async def _deny(self, reason: Reason, trail: _RequestState) -> Deny:
        """The refusal; wrong keys are counted, and a good key's quotas are told, though nothing is taken from them."""
        trail.request_id = trail.request_id or self._new_request_id()
        try:
            if reason in WRONG_KEY and await self._failed_too_often(trail):
                reason = Reason.TOO_MANY_FAILURES
            elif trail.caller and not trail.states:
                buckets = self._buckets(trail.route or self._unmatched, trail)
                trail.states = (await self._limiter.peek(buckets, self._clock())).states
        except Fault:
            pass
        return _refused(reason, trail)

    async def _failed_too_often(self, trail: _RequestState) -> bool:
        quota = self.config.keys.failures
        if quota is None:
            return False
        subject = (address_subject(trail.client_address),)
        taken = await self._limiter.take([Bucket(quota=quota, subject=subject, limit=quota.limit)], self._clock())
        trail.refused_quota = taken.refused
        return taken.refused is not None


def _check_method(head: RequestHead) -> None:
    if head.method in NEVER_ROUTED or not head.method.isupper() or head.target == "*":
        raise Denied(Reason.METHOD_NOT_ALLOWED)


def _allowed(route: Route, trail: _RequestState, *, target: str, host: bytes, headers: Headers) -> Allow:
    return Allow(
        route=route,
        principal=trail.principal,
        target=target,
        headers=headers,
        host=host,
        request_id=trail.request_id,
        client_address=trail.client_address,
        quota_states=trail.states,
    )


def _refused(reason: Reason, trail: _RequestState) -> Deny:
    return Deny(
        reason=reason,
        route=trail.route,
        principal=trail.principal,
        key=trail.key,
        request_id=trail.request_id,
        client_address=trail.client_address,
        quota_states=trail.states,
        refused_quota=trail.refused_quota,
    )
