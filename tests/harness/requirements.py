"""`pytest --requirements`: each requirement's id with the tests that carry it as `@pytest.mark.requirement(id, …)`.

A pytest plugin; runs no test.
"""

import re
from collections.abc import Iterable, Iterator

import pytest

ID = re.compile(r"([A-Z])(\d+)(?:[a-z]|\.(\d+))?")
"""A letter and a number, such as `H4`, or with a second number or letter, such as `S5.3` and `K2a`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--requirements", action="store_true", help="list each requirement with its tests, and run none")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--requirements"):
        config.option.collectonly = True  # Keeps pytest-xdist from starting its workers.


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    by_id = tests_by_id(items)
    if config.getoption("--requirements"):
        items.clear()
        for requirement in sorted(by_id, key=_order):
            print("\n".join([requirement, *(f"    {test}" for test in sorted(by_id[requirement]))]))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--requirements") and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


def tests_by_id(items: Iterable[pytest.Item]) -> dict[str, set[str]]:
    """Ids to tests, without the cases of a test's parameters. Raises UsageError for an id of another form."""
    found: dict[str, set[str]] = {}
    for item in items:
        for requirement in _ids(item):
            if ID.fullmatch(requirement) is None:
                raise pytest.UsageError(f"{item.nodeid}: {requirement!r} is not the id of a requirement")
            found.setdefault(requirement, set()).add(item.nodeid.partition("[")[0])
    return found


def _ids(item: pytest.Item) -> Iterator[str]:
    for mark in item.iter_markers("requirement"):
        yield from map(str, mark.args)


def _order(requirement: str) -> tuple[str, int, int]:
    parts = ID.fullmatch(requirement)
    assert parts is not None
    return parts[1], int(parts[2]), int(parts[3] or 0)
