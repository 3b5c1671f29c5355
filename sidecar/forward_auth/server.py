"""The decision listener: a proxy asks about a request, and gets the gate's decision. Read `_respond` first."""

import logging
from dataclasses import dataclass

from aiohttp import web

from sidecar.config.document import Limits
from sidecar.config.fields import Address
from sidecar.core.cors import SharingRules
from sidecar.core.error_responses import ErrorResponses
from sidecar.core.errors import Reason
from sidecar.core.model import Decision, Deny, RequestHead, Response
from sidecar.core.observer import Observer
from sidecar.core.units import Clock
from sidecar.forward_auth.dialects import Dialect, Terms, allowing, dialect_of, original, refusing
from sidecar.gate.gate import Gate
from sidecar.http.accepting import LimitName
from sidecar.http.hardened import HardenedServer, ServerLimits, to_aiohttp
from sidecar.http.requests import HeadLimits

_CARRIED_HEADERS = 16
"""Headers that a proxy adds to those of the client."""
_HEADER_NAME_BYTES = 128
_MAX_NAMED = 16
"""How many addresses of untrusted peers are logged."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A proxy's request. objection: the reason to refuse it without the gate."""

    head: RequestHead
    dialect: Dialect
    objection: Reason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The parts that decide a request and word the response. A reload swaps all of them at once.

    id_header: of refusals, for the request id. sharing: which scripts may read refusals; allowed responses are up to
    the upstream and the proxy in front.
    """

    gate: Gate
    responses: ErrorResponses
    terms: Terms
    limits: Limits
    id_header: bytes
    sharing: SharingRules


class DecisionServer:
    """Create it inside the running loop."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        observer: Observer,
        clock: Clock,
    ) -> None:
        self._snapshot, self._observer, self._clock = snapshot, observer, clock
        self._untrusted: set[str] = set()
        self._server = HardenedServer(web.Server(self.serve), host=self, limits=_server_limits(snapshot.limits))
        self._closing_when_idle = False
        self.addresses: tuple[Address, ...] = ()
        """The bound addresses, after `start`."""

    async def start(self, *addresses: Address) -> None:
        """Bind. Raises BindError."""
        self.addresses = self._server.bind(addresses)

    def close_when_idle(self) -> None:
        """Close each connection after its next response."""
        self._closing_when_idle = True

    def keep_open(self) -> None:
        """Undo `close_when_idle`."""
        self._closing_when_idle = False

    async def stop(self, *, grace_seconds: float) -> None:
        """Accept no more connections, let running requests finish within `grace_seconds`, and end the rest."""
        self.close_when_idle()
        await self._server.close(grace_seconds)

    def reconfigure(self, snapshot: Snapshot) -> None:
        """Use `snapshot` for requests from now on. Open connections keep their limits."""
        self._snapshot = snapshot
        self._server.reconfigure(_server_limits(snapshot.limits))

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        response = to_aiohttp(await self._respond(request))
        if self._closing_when_idle or not self.trusts(request.remote or ""):
            response.force_close()
        return response

    def trusts(self, peer: str) -> bool:
        return self._snapshot.terms.trusts(peer)

    def connection_refused(self, limit: LimitName) -> None:
        self._observer.connection_refused(limit)

    async def _respond(self, request: web.BaseRequest) -> Response:
        """Only requests of a trusted proxy, in an enabled dialect, reach the gate."""
        snapshot, peer = self._snapshot, request.remote or ""
        terms = snapshot.terms
        if not terms.trusts(peer):
            self._log_untrusted(peer)
            return self.refuse(Reason.NO_ROUTE, peer)
        dialect = dialect_of(request.raw_path, terms.served)
        if dialect is None:
            return self.refuse(Reason.BAD_REQUEST, peer)
        question = original(dialect, request.method, request.raw_path, request.raw_headers)
        if isinstance(question, Reason):
            return refusing(dialect, self.refuse(question, peer))
        head = RequestHead(method=question.method, target=question.target, headers=question.headers, peer=peer)
        objection = terms.objection(question, dialect)
        return await self._observed(Question(head=head, dialect=dialect, objection=objection), snapshot)

    async def _observed(self, question: Question, snapshot: Snapshot) -> Response:
        """A response in any case."""
        began, decision, reason = self._clock.monotonic(), None, question.objection
        request_id = "" if reason is None else snapshot.gate.request_id(question.head)
        self._observer.begun()
        response = snapshot.responses.for_reason(reason or Reason.INTERNAL)
        if request_id:
            response = _with_field(response, (snapshot.id_header, request_id.encode()))
        try:
            if reason is None:
                decision = await snapshot.gate.decide(question.head, remove_copies=False)
                reason, response = self._worded(decision, snapshot, question)
        except Exception as exc:
            reason = Reason.INTERNAL
            _log.error("internal error: %s", type(exc).__name__)
        finally:
            self._observer.finished(
                question.head,
                decision,
                response.status,
                seconds=self._clock.monotonic() - began,
                upstream_seconds=None,
                bytes_in=0,
                bytes_out=len(response.body),
                reason=reason,
                request_id=request_id,
            )
        if reason is None:
            return response
        if snapshot.sharing.tells_browsers:
            route = decision.route if decision is not None else None
            response = snapshot.sharing.decorated(response, route, question.head.headers)
        return refusing(question.dialect, response)

    def _worded(self, decision: Decision, snapshot: Snapshot, question: Question) -> tuple[Reason | None, Response]:
        """A route with a static response must not reach the upstream, to which the proxy would send it."""
        responses, now = snapshot.responses, self._clock.seconds()
        id_field = (snapshot.id_header, decision.request_id.encode())
        if isinstance(decision, Deny):
            return decision.reason, _with_field(responses.denied(decision, now), id_field)
        if decision.route.policy.respond is not None:
            return Reason.NO_ROUTE, _with_field(responses.for_reason(Reason.NO_ROUTE), id_field)
        terms = snapshot.terms
        ours = responses.client_headers(decision.principal, decision.quota_states, now)
        without = terms.not_forwarded(question.head.headers, decision)
        return None, allowing(question.dialect, terms.identity_headers(decision), ours, without=without)

    def refuse(self, reason: Reason, peer: str = "") -> Response:
        response = self._snapshot.responses.for_reason(reason)
        self._observer.bad_request(response.status, reason, peer=peer)
        return response

    def _log_untrusted(self, peer: str) -> None:
        """Log each untrusted peer once, up to a limit: an operator who forgot `trusted_proxies` only sees 403."""
        if peer not in self._untrusted and len(self._untrusted) < _MAX_NAMED:
            self._untrusted.add(peer)
            _log.warning("sidecar: decision listener: refused %s, which is not in trusted_proxies", peer)


def _with_field(response: Response, field: tuple[bytes, bytes]) -> Response:
    return Response(status=response.status, headers=(*response.headers, field), body=response.body)


def _server_limits(limits: Limits) -> ServerLimits:
    """A proxy's request contains the client's head, and the client's target once or twice more."""
    head = HeadLimits(
        request_line_bytes=limits.request_line * 2,
        header_bytes=max(limits.header, limits.request_line) + _HEADER_NAME_BYTES,
        headers=limits.headers + _CARRIED_HEADERS,
        head_bytes=limits.head + limits.request_line * 2,
    )
    return ServerLimits(
        connections=limits.connections,
        connections_per_address=limits.connections_per_address,
        head=head,
        head_seconds=limits.head_timeout,
        idle_seconds=limits.idle_timeout,
        stuck_seconds=limits.answer_timeout,
        reads_bodies=False,
    )
