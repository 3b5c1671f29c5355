"""Several workers at a time (pytest-xdist), but for tests marked `alone`, which run while no other test does.

A pytest plugin. `alone` is for what measures memory, CPU or time, or opens thousands of connections. The workers agree
by two locks of the kernel, and so do two runs in one checkout: one lock is shared by ordinary tests and taken whole by
one that is alone; the other is the way in, so that one that waits to be alone is not overtaken for ever.
"""

import fcntl
from collections.abc import Generator
from pathlib import Path

import pytest

_WAY_IN = Path(__file__)
_ROOM = Path(__file__).with_name("__init__.py")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    alone = item.get_closest_marker("alone") is not None
    with _ROOM.open("rb") as room:
        with _WAY_IN.open("rb") as way_in:
            fcntl.flock(way_in, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return (yield)
