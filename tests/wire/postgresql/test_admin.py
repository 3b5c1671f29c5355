"""The admin API and pages on PostgreSQL: the tests of keys, of many at once, and of one tenant."""

from types import ModuleType
from typing import Any

import pytest

from tests.harness.postgresql import PostgresqlServer
from tests.harness.running import Sidecar, StartSidecar
from tests.wire.admin import test_bulk, test_keys, test_tenant
from tests.wire.admin.calls import CONFIG
from tests.wire.admin.conftest import acme, auditor, ops

__all__ = ["acme", "auditor", "ops"]


@pytest.fixture(scope="module")
def sidecar(server: PostgresqlServer, template: str, start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG, store=server.database(template=template))


def borrowed(module: ModuleType) -> dict[str, Any]:
    """Its tests and fixtures, but for the sidecar."""
    members = {name: member for name, member in vars(module).items() if not name.startswith("__")}
    return {name: member for name, member in members.items() if name not in globals()}


for module in (test_tenant, test_keys, test_bulk):  # In this order: the first one wants no other keys of its tenant
    globals().update(borrowed(module))
