"""The site: its routes and its keys."""

import pytest

from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.wire.security.site import CONFIG, Site, keys_of


@pytest.fixture(scope="module")
def shared_sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


@pytest.fixture(scope="module")
def shared_keys(shared_sidecar: Sidecar) -> dict[str, str]:
    return keys_of(shared_sidecar)


@pytest.fixture
def site(shared_sidecar: Sidecar, shared_keys: dict[str, str], upstream: Upstream) -> Site:
    """The fixture with nothing recorded at the upstream."""
    return Site(sidecar=shared_sidecar, upstream=upstream, keys=shared_keys)
