"""Signals that arrive while the sidecar starts."""

import signal
from pathlib import Path

from tests.harness.waiting import until
from tests.wire.process.serving import Served, prepare

RELOADED = 'sidecar_config_reload_total{result="success"}'


def minds(pid: int, number: signal.Signals) -> bool:
    """Whether the process ignores or catches it, according to proc(5); otherwise it ends the process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigIgn:", "SigCgt:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def test_a_reload_requested_before_listening_happens_once_it_listens(tmp_path: Path) -> None:
    prepare(tmp_path)
    with Served(tmp_path) as served:
        until(lambda: minds(served.process.pid, signal.SIGHUP))
        served.process.send_signal(signal.SIGHUP)
        served.wait_until_ready()
        until(lambda: served.metrics()[RELOADED] == 1)
        assert served.stop() == 0
