"""A process that is started with closed standard streams, as some supervisors and `<&- >&- 2>&-` start it."""

import os
import signal
import subprocess
import sys
from itertools import chain, combinations
from pathlib import Path

import pytest

from tests.wire.process.serving import Served, environ, prepare

SOME = list(chain.from_iterable(combinations((0, 1, 2), number) for number in (1, 2, 3)))


@pytest.mark.parametrize("closed", SOME, ids=lambda closed: "".join(map(str, closed)))
def test_a_sidecar_without_some_standard_streams_serves_and_ends_well(tmp_path: Path, closed: tuple[int, ...]) -> None:
    prepare(tmp_path)
    config = tmp_path / "sidecar.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("access_log: off", "access_log: json"), "utf-8")
    shell = "exec " + " ".join(f"{number}>&-" for number in closed)
    command = ["sh", "-c", f'{shell}; exec "$@"', "sh", sys.executable, "-m", "sidecar", "serve", "-c", "sidecar.yaml"]
    with Served(tmp_path, command=command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sidecar:
        sidecar.wait_until_ready()
        assert b" 401 " in sidecar.exchange("data", b"GET /items/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        for number in closed:
            assert os.readlink(f"/proc/{sidecar.process.pid}/fd/{number}") == "/dev/null"
        assert sidecar.stop(signal.SIGINT) == 0


def test_a_command_without_standard_streams_does_its_work(tmp_path: Path) -> None:
    prepare(tmp_path)
    command = 'exec "$0" -m sidecar keys issue -c sidecar.yaml --name second <&- >&- 2>&-'
    ended = subprocess.run(["sh", "-c", command, sys.executable], cwd=tmp_path, env=environ(), check=False)
    assert ended.returncode == 0
    listed = subprocess.run(
        [sys.executable, "-m", "sidecar", "keys", "list", "-c", "sidecar.yaml"],
        cwd=tmp_path, env=environ(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "second" in listed.stdout
