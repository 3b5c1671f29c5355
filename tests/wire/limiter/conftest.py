"""A Redis that the tests of one module share, and limiters that count in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.redis import RedisServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder: Path = tmp_path_factory.mktemp("redis")
    with RedisServer(folder) as running:
        yield running
