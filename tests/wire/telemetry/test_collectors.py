"""Tracing with a collector that is dead, silent or unwilling, and without OpenTelemetry."""

import socket
import time
from pathlib import Path

import pytest

from tests.harness.ports import free_port
from tests.harness.running import Sidecar, StartSidecar
from tests.wire.telemetry.collector import Collector
from tests.wire.telemetry.test_tracing import CONFIG, SAMPLED, identified, server_span, tracing

PATIENCE_SECONDS = 20.0
"""For an end that waits for no collector: shorter than any would be waited for."""


def complaints(sidecar: Sidecar) -> list[str]:
    usual = ("listener on", "sidecar: draining")
    return [line for line in sidecar.process.stderr.all() if not any(words in line for words in usual)]


def test_a_dead_collector_does_not_slow_requests_fill_the_log_or_delay_shutdown(
    start_sidecar: StartSidecar,
) -> None:
    port = free_port()
    sidecar = start_sidecar(CONFIG + tracing(f"http://127.0.0.1:{port}", "sample: 1, timeout: 500ms"))
    key = sidecar.keys.issue(scopes=("read",))
    with sidecar.connect() as connection:
        credential = ("Authorization", f"Bearer {key.text}")
        for _ in range(300):
            assert connection.ask("GET", "/items/7", [credential]).status == 200
        assert sidecar.process.stderr.wait_for(lambda line: "does not accept spans" in line)
        for _ in range(300):
            assert connection.ask("GET", "/items/7", [credential]).status == 200
    with Collector(port=port) as revived:
        sidecar.ask("GET", "/items/7", identified("revived"), key=key)
        server_span(revived, "revived")
        assert sidecar.process.stderr.wait_for(lambda line: "accepts spans again" in line)
    assert sidecar.metric('sidecar_tracing_spans_total{result="dropped"}') > 0
    assert sidecar.metric('sidecar_tracing_spans_total{result="exported"}') > 0
    assert len(complaints(sidecar)) == 2, complaints(sidecar)
    began = time.monotonic()
    assert sidecar.stop() == 0
    assert time.monotonic() - began < PATIENCE_SECONDS


def test_a_silent_collector_does_not_delay_shutdown(start_sidecar: StartSidecar) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sidecar = start_sidecar(
            CONFIG + tracing(f"http://127.0.0.1:{silent.getsockname()[1]}", "sample: 1, timeout: 60s")
        )
        assert sidecar.ask("GET", "/items/7").status == 401
        silent.settimeout(60)
        with silent.accept()[0]:
            assert sidecar.ask("GET", "/items/7").status == 401
            began = time.monotonic()
            assert sidecar.stop() == 0
            assert time.monotonic() - began < PATIENCE_SECONDS


def test_a_refusing_collector_is_reported_once(start_sidecar: StartSidecar) -> None:
    with Collector(status=401) as refusing:
        sidecar = start_sidecar(CONFIG + tracing(refusing.url))
        for number in range(3):
            sidecar.ask("GET", f"/items/{number}", [("tracestate", "not a=tracestate"), ("traceparent", SAMPLED)])
            assert sidecar.process.stderr.wait_for(lambda line: "401" in line)
        assert sidecar.stop() == 0
    [line] = complaints(sidecar)
    assert line.startswith(f"sidecar: tracing: {refusing.url}/v1/traces does not accept spans")


def test_without_the_extra_the_start_says_what_to_install(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ImportError('not installed')\n", encoding="utf-8")
    with pytest.raises(AssertionError) as failed:
        start_sidecar(CONFIG + tracing("http://127.0.0.1:1"), environ={"PYTHONPATH": str(tmp_path)})
    told = str(failed.value).splitlines()
    assert "exit status 1" in told[0]
    [line] = told[1:]
    assert "install the extra otel" in line
