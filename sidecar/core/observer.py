"""What those who answer requests tell of each of them."""

from typing import Protocol

from sidecar.core.errors import Reason
from sidecar.core.model import Decision, RequestHead


class Observer(Protocol):
    """Told of every request once when it begins and once when it is over. Must not raise."""

    def begun(self) -> None: ...

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
    ) -> None:
        """status: what the client was sent; 499 where it hung up first. bytes: of the bodies.

        decision: None where there was none (hung up, malformed framing, a failure of ours).
        upstream_seconds: from handing the request on to the head of the answer, where there was one.
        reason: of a refusal or a fault; with the upstream's status, the answer broke off.
        Of a question to the decision listener: the gate's status, whatever the dialect makes of it.
        """

    def bad_request(self, status: int, reason: Reason) -> None:
        """Bytes that never became a request, or a question of a stranger's, were answered.

        `begun` was not called for them.
        """

    def connection_refused(self, limit: str) -> None:
        """A connection was refused, because of one of `limits`: `connections` or `connections_per_address`."""
