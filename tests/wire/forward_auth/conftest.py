"""The sidecar of deploy/forward-auth, queried over raw sockets."""

import pytest

from tests.harness.running import StartSidecar
from tests.wire.forward_auth.asking import Decider, start_decider


@pytest.fixture(scope="module")
def decider(start_shared_sidecar: StartSidecar) -> Decider:
    return start_decider(start_shared_sidecar)
