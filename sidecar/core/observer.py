"""What the listeners report about each request."""

from typing import Final, Literal, Protocol

from msgspec import Struct

from sidecar.core.errors import Reason, UpstreamCause
from sidecar.core.model import Decision, RequestHead

# A traced request on its way to the upstream.


SAMPLED: Final = 0x01
"""The trace flag."""


class Trace(Struct, frozen=True, kw_only=True, gc=False):
    """One request in its trace (W3C Trace Context). Ids are lower-case hexadecimal."""

    trace_id: str
    parent_id: str = ""
    """The caller's span; empty if the trace begins here."""
    span_id: str
    """Id of the server span."""
    client_span_id: str
    """Id of the client span, which is the upstream's parent."""
    flags: int = 0
    state: str = ""
    """The caller's tracestate."""

    @property
    def sampled(self) -> bool:
        return self.flags & SAMPLED != 0


class UpstreamName(Struct, frozen=True, kw_only=True, gc=False):
    """The upstream's name: host and port, or the path of a Unix socket and port 0."""

    scheme: Literal["http", "https"]
    host: str
    port: int


class Forwarding(Struct, frozen=True, kw_only=True, gc=False):
    """The client side of a traced request: where it was sent, and when (`sent`, Unix seconds)."""

    trace: Trace
    upstream: UpstreamName
    sent: float


CLIENT_CLOSED_REQUEST: Final = 499
"""Status, only for logs and metrics, of a request whose client disconnected before any response."""


class Observer(Protocol):
    """Called once when a request begins and once when it ends. Must not raise."""

    def begun(self) -> None: ...

    def forwarding(self, head: RequestHead, upstream: UpstreamName) -> Forwarding | None:
        """The request is about to be sent to `upstream`. None if it is not traced."""

    def finished(
        self,
        head: RequestHead,
        decision: Decision | None,
        status: int,
        *,
        seconds: float,
        upstream_seconds: float | None,
        bytes_in: int,
        bytes_out: int,
        reason: Reason | None,
        cause: UpstreamCause | None = None,
        forwarding: Forwarding | None = None,
        request_id: str = "",
        cut: bool = False,
    ) -> None:
        """status: the one sent to the client; CLIENT_CLOSED_REQUEST if it disconnected first. bytes: of the bodies.

        decision: None where there was none (hung up, malformed framing, a failure of ours).
        upstream_seconds: from sending the request to the head of the response, where there was one.
        reason: of a denial or a fault; with the upstream's status, the response broke off. cause: where the fault was
        the upstream's.
        forwarding: what `forwarding` gave, where the request was sent to the upstream. request_id: where there was no
        decision, which has its own. cut: the sidecar has ended the connection before the response was whole.
        Of a question to the forward-auth listener: the gate's status, whatever the dialect makes of it.
        """

    def bad_request(self, status: int, reason: Reason, *, peer: str, request_id: str = "") -> None:
        """Bytes that never became a request, or a question from an untrusted peer, were answered.

        peer: the socket's other end; empty if it has no address, or that is unknown.

        `begun` was not called for them.
        """

    def internal_error(self) -> None:
        """Our own code raised an unexpected exception."""

    def connection_refused(self, limit: str) -> None:
        """A connection was refused, because of one of `limits`: `connections` or `connections_per_address`.

        `open_files`: it waits, because the process cannot open more files. `held_bytes`: an open one was reset.
        """
