"""What pytest-xdist costs for each test: its workers tell the controller less, and the controller counts less.

A pytest plugin. With ten thousand tests, most of them short, what is said of a test costs more than the test.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any, SupportsIndex

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(_Worker(), "quiet-worker")
        config.option.verbose = config.option.verbose or -1  # Else it names each file.


class _Worker:
    """Prints nothing, for nobody sees it, and sends what somebody reads."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self) -> tuple[str, str, str]:
        """Neither a category, nor a letter, nor a word; the controller has them all."""
        return "", "", ""

    @pytest.hookimpl(wrapper=True)
    def pytest_report_to_serializable(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> Generator[None, dict[str, Any], dict[str, Any]]:
        """Without the keywords of a test, some thirty of them, by which nothing is chosen any more."""
        written = yield
        if isinstance(report, pytest.TestReport):
            written["keywords"] = {}
        return written


class _Found(list[str]):
    """The names of all tests, each of which is found at once: looked for one by one, they take seconds."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._places = {name: place for place, name in enumerate(names)}

    def index(self, name: str, start: SupportsIndex = 0, stop: SupportsIndex = 0) -> int:
        return self._places[name]


class Scheduling(LoadFileScheduling):
    """As `--dist loadfile`, and what a worker has done is not counted again after each test."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._done: Counter[str] = Counter()

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        super().add_node_collection(node, collection)
        if node in self.registered_collections:
            self.registered_collections[node] = _Found(collection)

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        scope, units = self._split_scope(self.registered_collections[node][item_index]), self.assigned_work[node]
        self._done[scope] += 1
        if self._done[scope] == len(units[scope]):
            del units[scope]
