"""What workers divide, and how they communicate with the control process."""

import os
import pickle
import socket
from pathlib import Path

import pytest

from sidecar.cli.workers import count_of
from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError
from sidecar.config.load import Override, load
from sidecar.config.reload import share_of, without_restart
from sidecar.runtime.workers import packed_of, receive, send
from sidecar.telemetry.access_log import lines_writer

CONFIG = """\
listen: 127.0.0.1:0
upstream: {url: "http://127.0.0.1:1", max_connections: 100}
upstreams:
  other: {url: "http://127.0.0.1:2", max_connections: 7}
store: sqlite:keys.db
limits: {connections: 1000, connections_per_address: 100, held_bytes: 9MiB}
scopes: {read: Read}
quotas: {general: {limit: 5, per: hour}}
plans: {free: {general: 3}}
routes:
- GET /items/**: {scopes: [read], quotas: [general], upstream: other}
"""


def config_of(folder: Path, more: str = "", overrides: dict[str, str] | None = None) -> Config:
    file = folder / "sidecar.yaml"
    file.write_text(CONFIG + more, encoding="utf-8")
    return load(str(file), environ={}, overrides=overrides or {})


def test_a_worker_has_its_share_of_what_is_for_all(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    share = share_of(config, 3)
    assert (share.limits.connections, share.limits.held_bytes) == (334, 3 << 20)
    assert share.limits.connections_per_address == 100
    assert [each.max_connections for each in share.every_upstream.values()] == [34, 3]
    assert share_of(config, 1) == config


def test_a_served_configuration_is_not_modified(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    sent: Config = pickle.loads(packed_of(config))  # noqa: S301 - our own
    assert without_restart(config, sent)[1] == ()
    assert (sent.routes, sent.plans, sent.upstreams) == (config.routes, config.plans, config.upstreams)


@pytest.mark.parametrize("size", [1, 1_000_000], ids=["a packet", "a file of memory"])
def test_everything_sent_is_received(size: int) -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        its.setblocking(False)
        with pytest.raises(BlockingIOError):
            receive(its)
        assert send(ours, "word", 7, b"x" * size)
        assert receive(its) == (os.getpid(), "word", 7, b"x" * size)
        ours.close()
        with pytest.raises(EOFError):
            receive(its)


def test_a_client_that_does_not_read_delays_no_other() -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        ours.setblocking(False)
        assert not all(send(ours, "word", 0, b"x" * 10_000) for _ in range(10_000))


def test_the_number_of_workers_comes_from_the_file_a_variable_or_the_command_line(tmp_path: Path) -> None:
    assert config_of(tmp_path).workers == 1
    assert config_of(tmp_path, "workers: 2\n").workers == 2
    assert config_of(tmp_path, "workers: auto\n").workers == "auto"
    assert config_of(tmp_path, "workers: 2\n", {"workers": Override("3", "SIDECAR_WORKERS")}).workers == 3
    assert config_of(tmp_path, overrides={"workers": "auto"}).workers == "auto"
    assert 1 <= count_of("auto") <= (os.cpu_count() or 1)
    for wrong in ("0", "257", "many"):
        with pytest.raises(ConfigError):
            config_of(tmp_path, overrides={"workers": wrong})


def test_lines_are_written_in_pieces_that_a_pipe_takes_whole() -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lock = os.memfd_create("lock")
    with ours, its:
        lines_writer(ours.fileno(), lock)(b"a" * 3000 + b"\n" + b"b" * 3000 + b"\n" + b"c\n" + b"d" * 9000 + b"\nend")
        pieces = [its.recv(20_000) for _ in range(4)]
    os.close(lock)
    assert [(piece[:1], len(piece)) for piece in pieces] == [(b"a", 3001), (b"b", 3003), (b"d", 9001), (b"e", 3)]
