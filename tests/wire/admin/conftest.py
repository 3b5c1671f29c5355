"""One sidecar with an admin listener for the tests of a module."""

import pytest

from tests.harness.running import Sidecar, StartSidecar
from tests.wire.admin.calls import ACME, AUDITOR, CONFIG, Admin, admin_address


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


@pytest.fixture(scope="module")
def ops(sidecar: Sidecar) -> Admin:
    """May do everything."""
    return Admin(address=admin_address(sidecar))


@pytest.fixture(scope="module")
def auditor(sidecar: Sidecar) -> Admin:
    """May read."""
    return Admin(address=admin_address(sidecar), token=AUDITOR)


@pytest.fixture(scope="module")
def acme(sidecar: Sidecar) -> Admin:
    """May write, for the tenant acme, within streams:write and the plan free."""
    return Admin(address=admin_address(sidecar), token=ACME)
