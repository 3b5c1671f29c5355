"""The site, and a final check that nothing went wrong inside."""

from collections.abc import Iterator

import pytest

from tests.harness.recording import Upstream
from tests.harness.running import StartSidecar
from tests.wire.corpus.stage import Stage, untroubled
from tests.wire.security.site import CONFIG, keys_of


@pytest.fixture(scope="module")
def shared_stage(start_shared_sidecar: StartSidecar, upstream_process: Upstream) -> Iterator[Stage]:
    sidecar = start_shared_sidecar(CONFIG)
    yield Stage(sidecar=sidecar, upstream=upstream_process, keys=keys_of(sidecar))
    assert sidecar.stop() == 0
    untroubled(sidecar)


@pytest.fixture
def stage(shared_stage: Stage, upstream: Upstream) -> Stage:
    """With nothing recorded at the upstream."""
    return shared_stage
