"""What the data path asks of the gate."""

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
