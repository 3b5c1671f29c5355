"""What forward-auth asks of the gate."""

from typing import Protocol

from sidecar.config.settings import Config
from sidecar.core.errors import Reason
from sidecar.core.model import Allow, Answer, Decision, Deny, Headers, RequestHead


class Gate(Protocol):
    """Decides under one configuration, and words refusals."""

    @property
    def config(self) -> Config: ...

    async def decide(self, head: RequestHead) -> Decision: ...

    def answer(self, deny: Deny) -> Answer: ...

    def client_headers(self, allow: Allow) -> Headers: ...

    def malformed(self, reason: Reason) -> Answer: ...
