"""The gate: a request head in, a decision out. Read `Gate.decide` first; it has all the steps."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Any, cast

from msgspec.structs import replace

from sidecar.config.build.config import Config
from sidecar.config.build.modes import Modes, observing
from sidecar.core.apikey import Hasher
from sidecar.core.cors import requested_method
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
    Taken,
)
from sidecar.core.policy import authorize, authorize_all_readings, check_status
from sidecar.core.target import Target, parse_target, readings
from sidecar.core.units import Clock
from sidecar.core.upstream_request import IdentityHeaders, request_id
from sidecar.gate import compile as compiled
from sidecar.gate.compile import PrincipalCompiler, PrincipalContext
from sidecar.gate.failures import Failures
from sidecar.gate.observation import NO_VALID_KEY, OBSERVABLE, Observation
from sidecar.gate.presented import KeyForms, Presented
from sidecar.gate.requests import NOTHING_TAKEN, KnownCredential, RequestState, Understood
from sidecar.keys.cache import MISS, CacheEntry, Found, KeyFinder
from sidecar.keys.ports import StoreUnavailable
from sidecar.limiter.port import Limiter

WRONG_KEY = frozenset(
    {Reason.INVALID_KEY, Reason.EXPIRED_KEY, Reason.DISABLED_KEY, Reason.REVOKED_KEY, Reason.RETIRED_KEY}
)
"""Denials that count against the client's address."""
_COUNTED = WRONG_KEY | {Reason.TOO_MANY_FAILURES}
_KNOWN_KEY = frozenset({Reason.DISABLED_KEY, Reason.EXPIRED_KEY})
"""Denials of a key that may become valid again; if configured, their responses say what is left of its quotas."""


class Gate:
    """Decides under one configuration. A reload makes a new gate.

    new_request_id: makes an id if the client sent none. failures: counts wrong keys; None: `limiter` does.
    """

    def __init__(
        self,
        config: Config,
        keys: KeyFinder,
        limiter: Limiter,
        *,
        hasher: Hasher,
        clock: Clock,
        new_request_id: Callable[[], str],
        failures: Limiter | None = None,
    ) -> None:
        self.config = config
        self._keys, self._limiter, self._hasher = keys, limiter, hasher
        self._failures = Failures(config.keys.failures, limiter if failures is None else failures)
        self._clock, self._new_request_id = clock, new_request_id
        self.methods = compiled.method_rules(config)
        self.routes = compiled.route_table(config)
        self.forms = KeyForms(config)
        self.credentials = compiled.credential_rules(config)
        self._identity = IdentityHeaders(config.identity.headers)
        self.proxies = compiled.trusted_proxies(config)
        self._id_header = config.identity.request_id.encode()
        self._id_field = self._id_header.lower()
        self.key_pattern = compiled.key_pattern(config)
        self.rules = compiled.header_rules(config, self.credentials)
        self.injection = compiled.injection(config, self.rules, self.proxies)
        self._principals = PrincipalCompiler(
            config.catalogue, self._identity, config.plans, size=config.keys.cache_size
        )
        self._unmatched, self._every_quota = config.unmatched, compiled.every_quota(config)
        self._modes = Modes(config) if observing(config) else None
        self._presented = Presented(self.credentials, self.injection, new_request_id)
        self._would_deny = (config.identity.would_deny or "").encode()
        self.answers_preflights = any(route.policy.cors is not None for route in config.routes)

    async def decide(self, head: RequestHead, *, remove_copies: bool = True) -> Decision:
        """Allow, or Deny with the reason; a client cannot cause an exception.

        remove_copies: the caller forwards exactly what Allow says, and nothing else from the client.
        """
        state = RequestState(client_address=head.peer)
        try:
            received = self.rules.classify(head.headers)
            state.request_id = request_id(received.fields, self._id_field, self.key_pattern) or self._new_request_id()
            state.client_address = self.proxies.client_address(head.peer, received.fields)
            self._check_method(head)
            host = check_host(received.fields.get(b"host"), head.version)
            target = parse_target(head.target, host.decode("ascii"))
            paths = state.paths = self._readings(target)
            matches = [self.routes.match(head.method, path) for path in paths]
            state.route = matches[0].route if matches[0] else None
            credential, copies = self._presented.credential(head, received, target, host, state, remove_copies)
            foreign = state.foreign = credential is not None and credential.foreign
            state.entry = None if credential is None or foreign else await self._find(credential.text, state)
            state.context = self._authenticate(state.entry)
            match = authorize_all_readings(matches, state.principal, foreign=foreign)
            upstream_target = self.injection.target(target, paths, credential, copies, match.route.policy.forward)
            state.taken, state.left = await self._take(match.route, state)
            _check_taken(state.taken)
            headers = self.injection.headers(head, received, credential, copies, host, self._identity_of(state))
            return state.allow(match.route, target=upstream_target, host=host, headers=headers)
        except Denied as denied:
            return await self._refuse(denied.reason, head, state, remove_copies)
        except Fault as fault:
            return state.deny(fault.reason)

    def decide_now(self, head: RequestHead, understood: Understood) -> Decision | None:
        """As `decide`, for an understood request. None, with nothing taken, if the decision has to wait."""
        if not self._limiter.immediate and (understood.match is None or understood.match.route.policy.charges):
            return None
        match, way, request_id = understood.match, understood.way, understood.request_id or self._new_request_id()
        address = self.proxies.client_address(head.peer, {self.proxies.header: way}) if way else head.peer
        entry: Found = MISS
        known: CacheEntry | None = None
        context: PrincipalContext | None = None
        taken = NOTHING_TAKEN
        try:
            if understood.credential is not None:
                entry = self._keys.peek(understood.credential.digest)
                if entry is MISS and self._may_be_found(understood.credential, address):
                    return None
                known = _known(entry)
                context = self._authenticate(known)
            match = authorize(match, context.principal if context else None, foreign=False)
            if match.route.policy.charges:
                buckets = self._principals.buckets(match.route, context, address)
                taken = _at_once(self._limiter.take_now(buckets, self._clock.seconds()))
                _check_taken(taken)
        except (StoreUnavailable, Fault, Denied) as error:
            if not isinstance(error, Denied) or (self._modes is not None and error.reason in OBSERVABLE):
                self._keys.uncount(entry)
                return None
            state = RequestState(address, request_id, match.route if match else None, known, context, taken)
            return self._deny_now(error.reason, state, head, understood.host)
        kept = self.injection.forwarded(head, understood.kept, understood.host)
        return Allow(
            route=match.route,
            principal=context.principal if context else None,
            target=understood.target,
            headers=(*kept, *self._identity_headers(context, request_id)),
            host=understood.host,
            request_id=request_id,
            client_address=address,
            quota_states=taken.states,
        )

    def decide_later(self, head: RequestHead, understood: Understood) -> Callable[[], Awaitable[Decision]] | None:
        """As `decide_now`, if the limiter must be awaited. None if `decide` must be called instead."""
        match, credential, way = understood.match, understood.credential, understood.way
        if self._limiter.immediate or match is None:
            return None
        found: Found = MISS
        try:
            found = MISS if credential is None else self._keys.peek(credential.digest)
            entry = None if credential is None else _known(found)
            context = self._authenticate(entry)
            match = authorize(match, context.principal if context else None, foreign=False)
        except (Denied, StoreUnavailable):
            self._keys.uncount(found)
            return None
        address = self.proxies.client_address(head.peer, {self.proxies.header: way}) if way else head.peer
        state = RequestState(address, understood.request_id or self._new_request_id(), match.route, entry, context)
        return partial(self._decide_later, head, understood, state)

    async def _decide_later(self, head: RequestHead, understood: Understood, state: RequestState) -> Decision:
        route = cast(Route, state.route)
        try:
            state.taken, _ = await self._take(route, state)
            _check_taken(state.taken)
        except Denied as denied:
            return await self._refuse(denied.reason, head, state, True)
        except Fault as fault:
            return state.deny(fault.reason)
        headers = (*self.injection.forwarded(head, understood.kept, understood.host), *self._identity_of(state))
        return state.allow(route, target=understood.target, host=understood.host, headers=headers)

    def preflight(self, head: RequestHead) -> Allow | None:
        """The route of a browser's preflight (Fetch, section 3.2.2), which has no key.

        None if no such route accepts requests from other origins: then call `decide`, as for any other request.
        """
        method = requested_method(head) if self.answers_preflights else None
        if method is None:
            return None
        try:
            received = self.rules.classify(head.headers)
            self.methods.check(method)
            target = parse_target(head.target, check_host(received.fields.get(b"host"), head.version).decode("ascii"))
            first, *others = [self.routes.match(method, path) for path in self._readings(target)]
        except Denied:
            return None
        if first is None or first.route.policy.cors is None or any(match != first for match in others):
            return None
        address = self.proxies.client_address(head.peer, received.fields)
        state = RequestState(client_address=address, request_id=self._new_request_id())
        return state.allow(first.route, target=head.target, host=b"", headers=())

    def request_id(self, head: RequestHead | None = None) -> str:
        """Of what is answered without a decision. head: None where the bytes are no request."""
        sent = [value for name, value in (head.headers if head else ()) if name.lower() == self._id_field]
        return request_id({self._id_field: sent}, self._id_field, self.key_pattern) or self._new_request_id()

    async def revalidate(self, key: ApiKey) -> ApiKey | Reason:
        """The key as stored now, or why it is no longer valid; unchanged if the store is unavailable."""
        try:
            entry = await self._keys.find(key.digest, lambda: {key.digest: key.algorithm})
            if entry is None:
                return Reason.INVALID_KEY
            check_status(entry.key, self._clock.micros())
        except Denied as denied:
            return denied.reason
        except StoreUnavailable:
            return key
        return entry.key

    def reauthorize(self, head: RequestHead, allow: Allow, key: ApiKey) -> Reason | None:
        """Why `key`, as it is now, may not do what `allow` permitted; None if it may."""
        try:
            target = parse_target(head.target, allow.host.decode("ascii"))
            matches = [self.routes.match(head.method, path) for path in self._readings(target)]
            principal = Principal(key=key, scopes=self.config.catalogue.expand(key.scopes))
            if self._modes is None:
                authorize_all_readings(matches, principal, foreign=False)
            else:
                Observation(self._modes, key).authorize(matches, principal, foreign=False)
        except Denied as denied:
            return denied.reason
        return None

    def _readings(self, target: Target) -> tuple[str, ...]:
        return (target.path,) if target.ordinary else readings(target.path, keep_slash=self.config.keep_slash)

    def _check_method(self, head: RequestHead) -> None:
        self.methods.check(head.method)
        if head.target == "*":
            raise Denied(Reason.METHOD_NOT_ALLOWED)

    def _authenticate(self, entry: CacheEntry | None) -> PrincipalContext | None:
        """Raises Denied if the key is not valid now."""
        if entry is None:
            return None
        context, now = self._principals.of(entry), self._clock.micros()
        if now >= context.valid_until:
            check_status(entry.key, now)
        return context

    async def _find(self, text: str, state: RequestState) -> CacheEntry:
        """The key of a credential. Raises Denied if there is none, and Fault if the store is unavailable.

        Cached credentials were well-formed. Any other must be checked before the store is queried.
        """
        digest = sha256(text.encode("utf-8", "surrogatepass")).digest()
        try:
            entry = self._keys.peek(digest)
            if entry is MISS:
                if not self.forms.may_be_stored(text):
                    raise Denied(Reason.INVALID_KEY)
                entry = await self._look_up(text, digest, state.client_address)
        except StoreUnavailable:
            raise Fault(Reason.STORE_UNAVAILABLE) from None
        return _known(entry)

    async def _look_up(self, text: str, digest: bytes, address: str) -> CacheEntry | None:
        """A key that was valid before the store's last change is looked up, whoever else shares its address."""

        def find() -> Coroutine[Any, Any, CacheEntry | None]:
            return self._keys.find(digest, lambda: self._hasher.candidates(text))

        if self._keys.remembers(digest):
            return await find()
        return await self._failures.look_up(address, self._clock.seconds(), find)

    def _may_be_found(self, credential: KnownCredential, address: str) -> bool:
        """Raises Denied if the store would not be queried for a key from this address."""
        if not self.forms.may_be_a_key(credential):
            return False
        known = self._keys.remembers(credential.digest)
        if not known and self._failures.refuse_lookup(address, self._clock.seconds()):
            raise Denied(Reason.TOO_MANY_FAILURES)
        return True

    async def _take(self, route: Route, state: RequestState) -> tuple[Taken, tuple[QuotaState, ...]]:
        """What was taken, and the states of all quotas of the key if the response reports them."""
        taken, left = NOTHING_TAKEN, NOTHING_TAKEN
        if route.policy.charges:
            taken = await self._limiter.take(self._buckets(route, state), self._clock.seconds())
        if (own := route.policy.respond) is not None and own.tells_quotas and taken.refused is None:
            left = await self._limiter.peek(self._buckets(self._every_quota, state), self._clock.seconds())
        return taken, left.states

    def _buckets(self, route: Route, state: RequestState) -> Sequence[Bucket]:
        return self._principals.buckets(route, state.context, state.client_address)

    def _identity_of(self, state: RequestState) -> Headers:
        return self._identity_headers(state.context, state.request_id)

    def _identity_headers(self, context: PrincipalContext | None, request_id: str) -> Headers:
        id_header = (self._id_header, request_id.encode())
        if context is None:
            return (id_header,)
        return (id_header, *context.identity, *self._identity.of_request(context.principal.key, request_id))

    async def _refuse(self, reason: Reason, head: RequestHead, state: RequestState, remove_copies: bool) -> Decision:
        """The denial, unless it is only observed."""
        if self._modes is None or reason not in OBSERVABLE:
            return await self._deny(reason, state)
        try:
            return await self._observe(reason, head, state, remove_copies, Observation(self._modes, state.key))
        except Denied as denied:
            return await self._deny(denied.reason, state)
        except Fault as fault:
            return state.deny(fault.reason)

    async def _observe(
        self, reason: Reason, head: RequestHead, state: RequestState, remove_copies: bool, seen: Observation
    ) -> Allow:
        """Where to forward the request. Raises Denied for an enforced refusal, `reason` or another one, and Fault."""
        received = self.rules.classify(head.headers)
        host = check_host(received.fields.get(b"host"), head.version)
        target = parse_target(head.target, host.decode("ascii"))
        paths = self._readings(target)
        matches = [self.routes.match(head.method, path) for path in paths]
        if any(match != matches[0] for match in matches):
            raise Denied(reason)
        injection = self.injection
        if reason in NO_VALID_KEY:
            seen.check(reason, state.route)
            injection = self._presented.without_key
            credential, copies = self._presented.no_key(received, target, host, state, remove_copies)
            await self._count_failure(reason, state, seen)
        else:
            credential, copies = self._presented.credential(head, received, target, host, state, remove_copies)
        foreign = credential is not None and credential.foreign
        match = seen.authorize(matches, state.principal, foreign=foreign)
        upstream_target = injection.target(target, paths, credential, copies, match.route.policy.forward)
        state.taken = await self._take_observed(match.route, state, seen)
        headers = injection.headers(head, received, credential, copies, host, self._identity_of(state))
        if self._would_deny and seen.first is not None:
            headers = (*headers, (self._would_deny, seen.first.reason.encode()))
        return state.allow(match.route, target=upstream_target, host=host, headers=headers, would_deny=seen.first)

    async def _count_failure(self, reason: Reason, state: RequestState, seen: Observation) -> None:
        """Count it as if it were refused: an address that sends many gets fewer lookups."""
        if reason is Reason.MALFORMED_CREDENTIAL:
            return
        with suppress(Fault):
            counted = await self._failures.count(state.client_address, self._clock.seconds())
            if counted.refused is not None:
                seen.check(Reason.TOO_MANY_FAILURES, state.route)

    async def _take_observed(self, route: Route, state: RequestState, seen: Observation) -> Taken:
        """As `_take`, if some quotas may be used up. Raises Denied if one of them is enforced, and Fault."""
        taken, _ = await self._take(route, state)
        if taken.refused is None:
            return taken
        held = seen.enforced(route, self._buckets(route, state))
        state.taken = await self._limiter.take(held, self._clock.seconds()) if held else NOTHING_TAKEN
        _check_taken(state.taken)
        return seen.used_up(route, taken, state.taken)

    async def _deny(self, reason: Reason, state: RequestState) -> Deny:
        """The denial. Wrong keys are counted; a valid key's quotas are reported, but nothing is taken from them."""
        state.request_id = state.request_id or self._new_request_id()
        try:
            if reason in _COUNTED:
                state.taken = await self._failures.count(state.client_address, self._clock.seconds())
                reason = Reason.TOO_MANY_FAILURES if state.taken.refused is not None else reason
            if buckets := self._reported_buckets(reason, state):
                self._report_states(state, await self._limiter.peek(buckets, self._clock.seconds()))
        except Fault:
            pass
        return self._denial(reason, state)

    def _deny_now(self, reason: Reason, state: RequestState, head: RequestHead, host: bytes) -> Deny | None:
        """As `_deny`. None if the response reports what the key has left, and that must be awaited."""
        if state.entry is not None and not self._limiter.immediate:
            self._keys.uncount(state.entry)
            return None
        try:
            if reason in _COUNTED:
                state.taken = self._failures.count_now(state.client_address, self._clock.seconds())
                reason = Reason.TOO_MANY_FAILURES if state.taken.refused is not None else reason
            if state.entry is not None and (buckets := self._reported_buckets(reason, state)):
                self._report_states(state, self._limiter.peek_now(buckets, self._clock.seconds()))
        except Fault:
            pass
        if not self._tells_methods(reason):
            return state.deny(reason)
        state.paths = self._readings(parse_target(head.target, host.decode("ascii")))
        return self._denial(reason, state)

    def _denial(self, reason: Reason, state: RequestState) -> Deny:
        denial = state.deny(reason)
        return replace(denial, methods=self.routes.methods(state.paths)) if self._tells_methods(reason) else denial

    def _tells_methods(self, reason: Reason) -> bool:
        return self.config.method_not_allowed and reason is Reason.NO_ROUTE

    def _reported_buckets(self, reason: Reason, state: RequestState) -> Sequence[Bucket]:
        """The quotas whose remainder a denial reports."""
        context = None if state.taken.states else state.context
        if reason in _COUNTED:
            shown = reason in _KNOWN_KEY and self.config.rate_limit_headers.on_refused_keys
            context = self._principals.of(state.entry) if shown and state.entry is not None else None
        route = state.route or self._unmatched
        return () if context is None else self._principals.buckets(route, context, state.client_address)

    def _report_states(self, state: RequestState, peeked: Taken | None) -> None:
        """What the key has left, as far as that is known."""
        if peeked is not None:
            seen = None if self._modes is None else Observation(self._modes, state.key)
            states = peeked.states if seen is None else seen.told(state.route, peeked.states)
            state.taken = Taken(states=states, refused=state.taken.refused)


def _known(entry: Found) -> CacheEntry:
    """Raises Denied if there is none."""
    if entry is None or entry is MISS:
        raise Denied(Reason.INVALID_KEY)
    return entry


def _at_once(taken: Taken | None) -> Taken:
    """Raises Fault if the limiter must be awaited."""
    if taken is None:
        raise Fault(Reason.LIMITER_UNAVAILABLE)
    return taken


def _check_taken(taken: Taken) -> None:
    if taken.refused is not None:
        raise Denied(Reason.QUOTA_EXCEEDED)
