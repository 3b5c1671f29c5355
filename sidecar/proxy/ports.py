"""What the data path needs of the rest of the house: who decides, and who is told."""

from typing import Protocol

from sidecar.core.errors import Reason
from sidecar.core.model import Allow, Answer, Decision, Deny, Headers, Principal, RequestHead


class Gate(Protocol):
    """Decides, and words our own answers. One gate serves a request from its head to its end."""

    async def decide(self, head: RequestHead) -> Decision: ...

    async def fallen(self, principal: Principal) -> Reason | None:
        """Why a principal that was let through would not be any longer; None where it would."""

    def answer(self, deny: Deny) -> Answer: ...

    def respond(self, allow: Allow) -> Answer: ...

    def client_headers(self, allow: Allow) -> Headers: ...

    def fault(self, reason: Reason, allow: Allow) -> Answer: ...

    def malformed(self, reason: Reason) -> Answer: ...


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
        """

    def malformed(self, peer: str, status: int, reason: Reason) -> None:
        """Bytes that never became a request were answered. `begun` was not called for them."""
