"""Judges the requests of tests: with the gate itself, made-up keys, and a clock that is set by hand."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from msgspec import Struct
from msgspec.structs import replace

from sidecar.core.apikey import Hasher
from sidecar.core.model import Allow, Bucket, Decision, Deny, Headers, RequestHead, Taken, WouldDeny
from sidecar.gate.compile import responses, sharing
from sidecar.gate.gate import Gate
from sidecar.limiter.port import Limiter
from sidecar.rehearsal.policy_tests.document import LATEST
from sidecar.rehearsal.policy_tests.keys import KnownKeys
from sidecar.rehearsal.policy_tests.suite import Case, Suite

REQUEST_ID: Final = "0" * 32
"""The request id of requests without one."""
T = TypeVar("T")


class Outcome(Struct, frozen=True, kw_only=True, gc=False):
    """The outcome of a case. takes: the amount that the last request took from each quota. at: Unix seconds."""

    case: Case
    decision: Decision
    takes: Mapping[str, int]
    at: float
    preflight: bool = False

    @property
    def forwarded(self) -> Allow | None:
        """None if the sidecar itself responds."""
        decision = self.decision
        if self.preflight or isinstance(decision, Deny) or decision.route.policy.respond is not None:
            return None
        return decision

    @property
    def word(self) -> str:
        """`allow`, or the reason."""
        return str(self.decision.reason) if isinstance(self.decision, Deny) else "allow"

    @property
    def observed(self) -> WouldDeny | None:
        """The refusal that is only observed, so that the request is forwarded."""
        return self.decision.would_deny if isinstance(self.decision, Allow) else None


class ClientResponse(Struct, frozen=True, kw_only=True, gc=False):
    """The response to the client. For a forwarded request, status and body are the upstream's (None), headers are
    added.
    """

    status: int | None
    headers: Headers
    body: bytes | None


class Judge:
    """Judges the cases of a suite, in their order. new_limiter: makes one without counts, whose coroutines never wait.

    A case does not depend on those before it, unless it follows the previous one.
    """

    def __init__(self, suite: Suite, new_limiter: Callable[[], Limiter]) -> None:
        config = suite.config
        self._began, self._clock = suite.now, _Clock(suite.now)
        self._keys, self._counts, self._failures = KnownKeys(), _Counts(new_limiter), _Counts(new_limiter)
        for made in suite.keys:
            if made.key is not None:
                self._keys.add(made.key)
        self.config = config
        self._gate = Gate(
            config,
            self._keys,
            self._counts,
            hasher=Hasher((), config.keys.imported),
            clock=self._clock,
            new_request_id=lambda: REQUEST_ID,
            failures=self._failures,
        )
        self._responses, self._sharing = responses(config), sharing(config)

    def judge(self, case: Case) -> Outcome:
        if not case.follows:
            self._begin(case)
        if case.used:
            self._counts.use_up(case.used, self._clock.seconds())
        if case.after:
            self._clock.advance(case.after)
        for _ in range(case.times - 1):
            self._decide(case.head)
        self._counts.taken = {}
        decision, preflight = self._decide(case.head)
        taken, at = self._counts.taken, self._clock.seconds()
        return Outcome(case=case, decision=decision, takes=taken, at=at, preflight=preflight)

    def _begin(self, case: Case) -> None:
        """Starts anew. Whether a key was seen before matters only after wrong keys, so only in a sequence."""
        self._clock.set(self._began)
        self._counts.forget()
        self._failures.forget()
        if case.leads:
            self._keys.forget()

    def response(self, outcome: Outcome) -> ClientResponse:
        """As in the data listener (`proxy.handler`)."""
        decision, head = outcome.decision, outcome.case.head
        if outcome.preflight and isinstance(decision, Allow):
            response = self._sharing.preflight(head, decision.route)
        elif isinstance(decision, Deny):
            response = self._sharing.decorated(
                self._responses.denied(decision, outcome.at), decision.route, head.headers
            )
        elif (own := decision.route.policy.respond) is not None:
            response = self._responses.static_response(decision, own, outcome.at)
            response = self._sharing.decorated(response, decision.route, head.headers)
        else:
            return ClientResponse(status=None, headers=self._added(decision, head, outcome.at), body=None)
        headers = (*response.headers, self._id_field(decision))
        return ClientResponse(
            status=response.status, headers=headers, body=b"" if head.method == "HEAD" else response.body
        )

    def _decide(self, head: RequestHead) -> tuple[Decision, bool]:
        """The decision, and whether it is on a preflight."""
        if head.method == "OPTIONS" and self._sharing.tells_browsers:
            allow = self._gate.preflight(head)
            if allow is not None:
                return allow, True
        return finished(self._gate.decide(head)), False

    def _added(self, allow: Allow, head: RequestHead, at: float) -> Headers:
        """The headers that are added to a response of the upstream that has none for caches and other origins."""
        fields = self._responses.client_headers(allow.principal, allow.quota_states, at)
        rules = self._sharing.of(allow.route)
        shared = () if rules is None else rules.fields(head.headers, set(), (), key_in_query=allow.key_in_query)
        return (*fields, *shared, self._id_field(allow))

    def _id_field(self, decision: Decision) -> tuple[bytes, bytes]:
        return self.config.identity.request_id.encode(), decision.request_id.encode()


class _Clock:
    """A clock that only changes when it is set. Microseconds."""

    def __init__(self, now: int) -> None:
        self._now = now

    def set(self, now: int) -> None:
        self._now = now

    def advance(self, seconds: float) -> None:
        """At most the latest time that RFC 3339 can express."""
        self._now = min(self._now + int(seconds * 1_000_000), LATEST)

    def seconds(self) -> float:
        return self._now / 1_000_000

    def micros(self) -> int:
        return self._now

    def monotonic(self) -> float:
        return self._now / 1_000_000


class _Counts:
    """A limiter that records what is taken. Only the gate knows the buckets of a request, so amounts that are used up
    beforehand are taken when the gate first asks.
    """

    immediate = False

    def __init__(self, new_limiter: Callable[[], Limiter]) -> None:
        self._new, self._limiter, self._clean = new_limiter, new_limiter(), True
        self._used: dict[str, int] = {}
        self._used_at = 0.0
        self.taken: dict[str, int] = {}

    def forget(self) -> None:
        self._used = {}
        if not self._clean:
            self._limiter, self._clean = self._new(), True

    def use_up(self, used: Mapping[str, int], at: float) -> None:
        """at: Unix seconds."""
        self._used, self._used_at = dict(used), at

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        self._clean = False
        if self._used:
            await self._take_used(buckets)
        taken = await self._limiter.take(buckets, now)
        if taken.refused is None:
            for bucket in buckets:
                self.taken[bucket.quota.name] = self.taken.get(bucket.quota.name, 0) + bucket.cost
        return taken

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        if self._used:
            await self._take_used(buckets)
        return await self._limiter.peek(buckets, now)

    def take_now(self, buckets: Sequence[Bucket], now: float) -> None:
        """None: it always has to wait."""

    peek_now = take_now

    async def _take_used(self, buckets: Sequence[Bucket]) -> None:
        """At most what is left of the quota."""
        self._clean = False
        for bucket in buckets:
            cost = self._used.pop(bucket.quota.name, 0)
            if cost:
                [state] = (await self._limiter.peek([bucket], self._used_at)).states
                if cost := min(cost, state.remaining):
                    await self._limiter.take([replace(bucket, cost=cost)], self._used_at)


def finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    work.close()
    raise RuntimeError("a limiter of tests has waited")
