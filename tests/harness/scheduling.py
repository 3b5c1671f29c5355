"""Several workers at a time (pytest-xdist), but for tests marked `alone`, which run while no other test does.

A pytest plugin. `alone` is for what measures memory, CPU or time, or opens thousands of connections. The workers agree
by two locks of the kernel, and so do two runs in one checkout: one lock is shared by ordinary tests and taken whole by
one that is alone; the other is the way in, so that one that waits to be alone is not overtaken for ever.
"""

import fcntl
import os
from collections.abc import Generator
from pathlib import Path

import pytest

_MOST_WORKERS = 8
_LONGEST = (
    "deploy/test_container",
    "docs/test_commands",
    "pages/test_use",
    "pages/test_life",
    "security/test_large_bodies",
    "reload/test_under_load",
    "cli/test_serve",
    "http/test_attacks",
    "deploy/test_rules",
    "admin/test_openapi",
    "telemetry/test_tracing",
    "fuzz/test_mutated_requests",
    "security/test_upstream_names",
    "keys/test_many_keys",
    "pages/test_safety",
)
"""Files that take 20 seconds or more."""
_WAY_IN = Path(__file__)
_ROOM = Path(__file__).with_name("__init__.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one at the end while the others have nothing to do."""
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(f"{item.path.parent.name}/{item.path.stem}", len(ranks)))


def pytest_xdist_auto_num_workers() -> int:
    """Two for each core, because tests wait as much as they compute: for timeouts, for ends, for other processes."""
    return min(2 * len(os.sched_getaffinity(0)), _MOST_WORKERS)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    alone = item.get_closest_marker("alone") is not None
    with _ROOM.open("rb") as room:
        with _WAY_IN.open("rb") as way_in:
            fcntl.flock(way_in, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return (yield)
