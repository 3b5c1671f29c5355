"""The sidecar as the first process of a container."""

import sys
from pathlib import Path

from tests.harness.tools import needed
from tests.harness.waiting import until
from tests.wire.process.serving import Served, prepare

START = '(sleep 0.1 &) ; exec "$0" -m sidecar serve -c sidecar.yaml'
"""The subshell ends immediately, and process 1 adopts its children, one of them before the sidecar begins."""


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_children_that_come_to_it_are_reaped(tmp_path: Path) -> None:
    prepare(tmp_path)
    command = [needed("unshare"), "--map-root-user", "--pid", "--fork", "--kill-child", "sh", "-c", START]
    with Served(tmp_path, command=[*command, sys.executable]) as served:
        served.wait_until_ready()
        [first] = children_of(served.process.pid)
        until(lambda: children_of(first) == [])
