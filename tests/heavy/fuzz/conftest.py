"""One sidecar for all examples of a module."""

from collections.abc import Iterator

import pytest

from tests.harness.recording import Upstream
from tests.harness.running import StartSidecar
from tests.heavy.fuzz.site import CONFIG, TENANT, FuzzSite
from tests.wire.corpus.stage import untroubled


@pytest.fixture(scope="module")
def fuzz_site(start_shared_sidecar: StartSidecar, upstream_process: Upstream) -> Iterator[FuzzSite]:
    sidecar = start_shared_sidecar(CONFIG)
    upstream_process.clear()
    yield FuzzSite(
        sidecar=sidecar, upstream=upstream_process, key=sidecar.keys.issue("K", scopes=("read",), tenant=TENANT)
    )
    upstream_process.clear()
    assert sidecar.stop() == 0
    untroubled(sidecar)
