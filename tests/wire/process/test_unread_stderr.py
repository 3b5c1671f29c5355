"""The reader of stderr may be slow, stuck or gone: requests, probes and signals do not wait for it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.harness.waiting import until
from tests.wire.process.serving import FullPipe, Served, prepare

GARBAGE = b"\x16\x03\x01 not a request\r\n\r\n"
LONG = "x" * 200
LEVELS = 15
REFUSED = 'sidecar_config_reload_total{result="failure"}'
DROPPED = "sidecar_log_dropped_total"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(tmp_path)
    return tmp_path


@pytest.fixture
def pipe() -> Iterator[FullPipe]:
    pipe = FullPipe()
    yield pipe
    pipe.close()


def test_a_full_stderr_delays_no_request_no_probe_and_no_signal(folder: Path, pipe: FullPipe) -> None:
    with Served(folder, stderr=pipe.write_end, forked=True) as sidecar:
        sidecar.wait_until_ready()
        for _ in range(50):
            assert b" 400 " in sidecar.exchange("data", GARBAGE)
            assert sidecar.get("/livez").endswith(b"ok\n")
            sidecar.process.send_signal(signal.SIGHUP)
        until(lambda: sidecar.metrics()['sidecar_config_reload_total{result="success"}'] > 0)
        began = time.monotonic()
        assert sidecar.stop() == 0
        assert time.monotonic() - began < 10


def test_lines_that_stderr_does_not_accept_are_dropped_counted_and_reported_later(folder: Path, pipe: FullPipe) -> None:
    deep = folder / "/".join([LONG] * LEVELS)
    deep.mkdir(parents=True)
    (folder / "sidecar.yaml").rename(deep / "sidecar.yaml")
    with Served(folder, ["-c", str(deep / "sidecar.yaml")], stderr=pipe.write_end, forked=True) as sidecar:
        sidecar.wait_until_ready()
        (deep / "sidecar.yaml").unlink()

        def dropped_some() -> bool:
            """Each failed reload writes a long line."""
            sidecar.process.send_signal(signal.SIGHUP)
            return sidecar.metrics()[REFUSED] > 0 and sidecar.metrics()[DROPPED] > 0

        until(dropped_some)
        pipe.close_write_end()
        reading = _Reading(pipe)
        until(lambda: "log line dropped" in reading.text or "log lines dropped" in reading.text)
        assert sidecar.get("/livez").endswith(b"ok\n")
        assert sidecar.stop() == 0
    assert reading.finish().splitlines()[:2] == [
        f"sidecar: data listener on unix:{folder}/data.sock",
        f"sidecar: ops listener on unix:{folder}/ops.sock",
    ]


def test_lines_logged_before_a_clean_exit_are_written(folder: Path) -> None:
    read_end, write_end = os.pipe()
    with Served(folder, stderr=write_end, forked=True) as sidecar:
        os.close(write_end)
        sidecar.wait_until_ready()
        sidecar.exchange("data", GARBAGE)
        assert sidecar.stop() == 0
    with os.fdopen(read_end) as pipe:
        lines = pipe.read().splitlines()
    listeners, told = lines[:2], [line for line in lines[2:] if "malformed request refused" in line]
    assert [line.split(" ")[1] for line in listeners] == ["data", "ops"]
    assert [line.split(" ")[1] for line in told] == ["1"]


def test_a_reader_that_is_gone_changes_nothing(folder: Path) -> None:
    read_end, write_end = os.pipe()
    with Served(folder, stderr=write_end, forked=True) as sidecar:
        os.close(write_end)
        os.close(read_end)
        sidecar.wait_until_ready()
        assert b" 400 " in sidecar.exchange("data", GARBAGE)
        assert sidecar.stop() == 0


def test_a_startup_error_that_nobody_reads_does_not_keep_the_process_alive(folder: Path, pipe: FullPipe) -> None:
    (folder / "keys.db").unlink()
    with Served(folder, stderr=pipe.write_end, forked=True) as sidecar:
        assert sidecar.process.wait(30) == 1


class _Reading:
    """Reads a pipe from now on."""

    def __init__(self, pipe: FullPipe) -> None:
        self._pipe, self._read = pipe, b""
        self._thread = Thread(target=self._gather, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        return self._read[self._pipe.filled :].decode()

    def finish(self) -> str:
        self._thread.join(30)
        return self.text

    def _gather(self) -> None:
        while read := os.read(self._pipe.read_end, 65536):
            self._read += read
