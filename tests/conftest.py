"""Fixtures that start real processes: one upstream for the session, sidecars as tests ask for them."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.harness.recording import Upstream, running_upstream
from tests.harness.running import StartSidecar, starter

# No test is judged by the clock: the machine may be busy with others.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

pytest_plugins = ["tests.harness.requirements", "tests.harness.workers", "tests.harness.scheduling"]


def pytest_configure() -> None:
    """What a shell runs in the background (`pytest &`) ignores SIGINT, and so would all that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def upstream_process() -> Iterator[Upstream]:
    """The upstream, with whatever earlier tests sent to it."""
    with running_upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(upstream_process: Upstream) -> Upstream:
    """The upstream, with nothing recorded and nothing planned."""
    upstream_process.clear()
    return upstream_process


@pytest.fixture
def start_sidecar(upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartSidecar]:
    """Starts sidecars that live as long as the test."""
    with ExitStack() as stack:
        yield starter(stack, upstream_process, lambda: _folder(tmp_path_factory))


@pytest.fixture(scope="module")
def start_shared_sidecar(
    upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartSidecar]:
    """Starts sidecars that live as long as the module's tests."""
    with ExitStack() as stack:
        yield starter(stack, upstream_process, lambda: _folder(tmp_path_factory))


def _folder(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("sidecar")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-contracts", action="store_true", help="write down what the outside looks like now")
