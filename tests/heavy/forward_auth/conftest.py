"""The sidecar that proxies ask."""

from tests.wire.forward_auth.conftest import decider

__all__ = ["decider"]
