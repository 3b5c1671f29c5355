"""The decision listener: a proxy asks about a request, and is told what the gate says. Read `_respond` first."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import hdrs, web

from sidecar.config.settings import Address, Limits
from sidecar.core.error_responses import ErrorResponses
from sidecar.core.errors import Reason
from sidecar.core.model import Decision, Deny, RequestHead, Response
from sidecar.core.observer import Observer
from sidecar.forward_auth.dialects import Dialect, Terms, allowing, dialect_of, original, refusing
from sidecar.gate.gate import Gate
from sidecar.http.hardened import Listener, Reply

_MAX_NAMED = 16
"""Strangers whose addresses the log is told."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a proxy wants to know. objection: why the gate need not be asked."""

    head: RequestHead
    dialect: Dialect
    objection: Reason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What decides a question and words the response. A reload swaps it whole."""

    gate: Gate
    responses: ErrorResponses
    terms: Terms
    limits: Limits


class DecisionServer:
    """To be made where its loop runs. clock: seconds, monotonic. wall_clock: Unix seconds."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        observer: Observer,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._snapshot, self._observer, self._clock, self._wall_clock = snapshot, observer, clock, wall_clock
        self._strangers: set[str] = set()
        self._listener = Listener(self, snapshot.limits)
        self._retiring = False
        self.address = Address()
        """Where it is bound, once it is started."""

    async def start(self, address: Address) -> None:
        """Bind. Raises OSError."""
        self.address = await self._listener.bind(address)

    def close_when_idle(self) -> None:
        """Every answer is its connection's last from here on."""
        self._retiring = True

    async def stop(self, *, grace_seconds: float) -> None:
        """Take no more connections, finish what is under way for at most `grace_seconds`, and end the rest."""
        self.close_when_idle()
        await self._listener.close(grace_seconds)

    def reconfigure(self, snapshot: Snapshot) -> None:
        """Serve questions from here on by `snapshot`. Open connections keep their limits."""
        self._snapshot, self._listener.limits = snapshot, snapshot.limits

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        reply = Reply(await self._respond(request))
        # aiohttp's parser hands the last trailer of a chunked request to the next one as a header (3.14.5 and before).
        if self._retiring or hdrs.TRANSFER_ENCODING in request.headers or not self.trusts(request.remote or ""):
            reply.force_close()
        return reply

    def trusts(self, peer: str) -> bool:
        return self._snapshot.terms.trusts(peer)

    def connection_refused(self, cap: str) -> None:
        self._observer.connection_refused(cap)

    async def _respond(self, request: web.BaseRequest) -> Response:
        """Only what a trusted proxy asks, in a dialect that is served, comes before the gate."""
        snapshot, peer = self._snapshot, request.remote or ""
        terms = snapshot.terms
        if not terms.trusts(peer):
            self._note_stranger(peer)
            return self.refuse(Reason.NO_ROUTE)
        dialect = dialect_of(request.raw_path, terms.served)
        if dialect is None:
            return self.refuse(Reason.BAD_REQUEST)
        asked = original(dialect, request.method, request.raw_path, request.raw_headers)
        if isinstance(asked, Reason):
            return refusing(dialect, self.refuse(asked))
        head = RequestHead(method=asked.method, target=asked.target, headers=asked.headers, peer=peer)
        return await self._observed(Question(head=head, dialect=dialect, objection=terms.objection(asked)), snapshot)

    async def _observed(self, question: Question, snapshot: Snapshot) -> Response:
        """The answer, whatever happens."""
        began, decision, reason = self._clock(), None, question.objection
        self._observer.begun()
        response = snapshot.responses.for_reason(reason or Reason.INTERNAL)
        try:
            if reason is None:
                decision = await snapshot.gate.decide(question.head)
                reason, response = self._worded(decision, snapshot, question.dialect)
        except Exception as exc:
            reason = Reason.INTERNAL
            _log.error("internal error: %s", type(exc).__name__)
        finally:
            self._observer.finished(
                question.head,
                decision,
                response.status,
                seconds=self._clock() - began,
                upstream_seconds=None,
                bytes_in=0,
                bytes_out=len(response.body),
                reason=reason,
            )
        return refusing(question.dialect, response) if reason else response

    def _worded(self, decision: Decision, snapshot: Snapshot, dialect: Dialect) -> tuple[Reason | None, Response]:
        """A route that the sidecar itself responds to is not the upstream's, where the proxy in front would send it."""
        responses, now = snapshot.responses, self._wall_clock()
        if isinstance(decision, Deny):
            return decision.reason, responses.denied(decision, now)
        if decision.route.policy.respond is not None:
            return Reason.NO_ROUTE, responses.for_reason(Reason.NO_ROUTE)
        terms = snapshot.terms
        ours = responses.client_headers(decision.principal, decision.quota_states, now)
        return None, allowing(dialect, terms.told(decision), ours, without=terms.not_forwarded(decision))

    def refuse(self, reason: Reason) -> Response:
        response = self._snapshot.responses.for_reason(reason)
        self._observer.bad_request(response.status, reason)
        return response

    def _note_stranger(self, peer: str) -> None:
        """Once for each, and not for ever more: an operator who forgot `trusted_proxies` sees nothing but 403."""
        if peer not in self._strangers and len(self._strangers) < _MAX_NAMED:
            self._strangers.add(peer)
            _log.warning("sidecar: decision listener: refused %s, which is not in trusted_proxies", peer)
