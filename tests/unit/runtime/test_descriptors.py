"""How a process divides the files that it may open."""

from pathlib import Path

import pytest

from sidecar.config.build.config import Config
from sidecar.config.load import load
from sidecar.runtime.descriptors import Descriptors

CONFIG = """\
listen: 127.0.0.1:0
upstream: {url: "http://127.0.0.1:1", max_connections: 256}
store: sqlite:keys.db
scopes: {read: Read}
routes:
- GET /items/**: {scopes: [read]}
"""
FORWARD_AUTH = "decision: 127.0.0.1:0\ntrusted_proxies: [127.0.0.1]\n"
HELD = 20


def config_of(folder: Path, more: str = "") -> Config:
    file = folder / "sidecar.yaml"
    file.write_text(CONFIG + more, encoding="utf-8")
    return load(str(file), environ={})


@pytest.mark.parametrize("more", ["", FORWARD_AUTH], ids=["data", "and forward auth"])
@pytest.mark.parametrize("limit", [64, 128, 256, 1024, 4096, 16_384, 20_000, 65_536, 1 << 20])
def test_all_that_can_be_open_at_once_is_within_the_limit(tmp_path: Path, limit: int, more: str) -> None:
    config = config_of(tmp_path, more)
    files = Descriptors(config, limit=limit, held=HELD)
    room, operators = files.room(config), files.operators().connections
    assert room.lent is not None
    clients = room.limits.connections
    listeners = 2 if more else 1
    upstream = min(clients, config.upstream.max_connections + room.lent)
    assert clients >= 1 and operators >= 8
    assert HELD + listeners * clients + upstream + 2 * operators + 16 <= limit


@pytest.mark.parametrize(("limit", "most", "few"), [(1024, 620, True), (20_000, 16_384, True), (65_536, 16_384, False)])
def test_the_limit_of_connections_is_lowered_only_if_needed(tmp_path: Path, limit: int, most: int, few: bool) -> None:
    config = config_of(tmp_path)
    files = Descriptors(config, limit=limit, held=HELD)
    assert (files.room(config).limits.connections, files.few) == (most, few)


def test_without_a_limit_nothing_is_lowered(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    files = Descriptors(config, limit=None, held=HELD)
    assert (files.room(config).limits, files.room(config).lent, files.few) == (config.limits, None, False)


def test_a_lowered_limit_is_reported_once_per_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(tmp_path)
    files = Descriptors(config, limit=1024, held=HELD)
    files.room(config)
    files.room(config)
    assert [record.getMessage() for record in caplog.records] == [
        "sidecar: limits.connections is 620 instead of 16384: the process may open only 1024 files (ulimit -n)"
    ]
