"""PostgreSQL fulfils the contract of every store, and passes the tests of the shared statements that need no file."""

import inspect
from types import ModuleType
from typing import Any

from tests.unit.keys import (
    test_audit,
    test_differences,
    test_importing,
    test_orders,
    test_rehashing,
    test_sqlite,
    test_usage_store,
)
from tests.unit.keys.contract import StoreContract

SHARED = (test_audit, test_differences, test_importing, test_orders, test_rehashing, test_sqlite, test_usage_store)
FIXTURES = ("six_rows", "stocked", "week")


class TestPostgresqlStore(StoreContract):
    """The contract, kept by PostgreSQL."""


def shared(module: ModuleType) -> dict[str, Any]:
    """Tests of a store that do not depend on its file, and their fixtures."""
    return {
        name: member
        for name, member in vars(module).items()
        if name in FIXTURES or (name.startswith("test_") and asks_a_store(member))
    }


def asks_a_store(test: Any) -> bool:
    asked = inspect.signature(test).parameters.keys()
    return bool(asked & {"store", "stocked", "six_rows", "lifecycle"}) and "path" not in asked


for module in SHARED:
    globals().update(shared(module))
