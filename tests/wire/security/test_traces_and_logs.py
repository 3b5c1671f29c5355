"""Secrets and hostile names with tracing and another log format."""

import pytest

from tests.harness.recording import Upstream
from tests.harness.running import StartSidecar
from tests.wire.security.site import BASE, KEYS
from tests.wire.security.test_key_secrecy import DEBUGGING, forms_of, present
from tests.wire.telemetry.collector import Collector

SOURCES = KEYS.replace("{header: X-Api-Key}]", "{header: X-Api-Key}, {query: api_key}, {cookie: api_key}]")


def elsewhere(key: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Targets and headers in which a key does not belong."""
    return [
        (f"/items/{key}/x", []),
        (f"/items/x?{key}", []),
        (f"/items/x?{key}=1&a={key}", []),
        (f"http://api.test/items/{key}?q={key}", []),
        ("/items/x", [("User-Agent", f"tool/1 ({key})")]),
        ("/items/x", [("Referer", f"https://u:{key}@h/{key}?k={key}#{key}")]),
        ("/items/x", [("traceparent", key)]),
        ("/items/x", [("traceparent", f"00-{'1' * 32}-{'2' * 16}-01"), ("tracestate", f"a={key},b=1")]),
        ("/items/x", [("baggage", f"key={key}")]),
        ("/items/x", [("X-Request-Id", key)]),
        ("/items/x", [("X-Forwarded-For", key), ("Forwarded", f"for={key}")]),
    ]


@pytest.mark.requirement("S4.6")
@pytest.mark.parametrize("log", ["{format: combined, query: redacted}", "{format: json, query: redacted}"])
def test_a_canary_key_is_in_no_span_and_no_log_of_any_format(start_sidecar: StartSidecar, log: str) -> None:
    with Collector() as collector:
        tracing = f"tracing: {{endpoint: '{collector.url}', sample: 1}}\n"
        sidecar = start_sidecar(BASE + SOURCES + tracing + f"access_log: {log}\n", environ=DEBUGGING)
        canary = sidecar.keys.issue("canary", scopes=("read",)).text
        present(sidecar, canary)
        for target, headers in elsewhere(canary):
            sidecar.ask("GET", target, headers, key=canary)
            sidecar.ask("GET", target, headers)
        assert sidecar.stop() == 0
        lines = [*sidecar.process.stdout.all(), *sidecar.process.stderr.all()]
        assert any("/items/x" in line for line in lines)
        assert len(collector.spans()) > 30
        written = "\n".join(lines).encode() + collector.written()
    for form in forms_of(canary):
        assert form not in written


@pytest.mark.requirement("S6.4")
def test_a_combined_line_stays_one_line(start_sidecar: StartSidecar, upstream: Upstream) -> None:
    sidecar = start_sidecar(BASE + KEYS + "access_log: combined\n")
    hostile = 'a"b\\c \xe9\x80\t" 200 1 "-" "-"'
    for _ in range(2):
        sidecar.ask("GET", "/public/x", [("User-Agent", hostile), ("Referer", hostile)])
    assert upstream.requests()
    assert sidecar.stop() == 0
    shown = r"a\"b\\c \xe9\x80\x09\" 200 1 \"-\" \"-\""
    lines = sidecar.process.stdout.all()
    assert len(lines) == 2
    for line in lines:
        assert '"GET /public/x HTTP/1.1" 200 ' in line
        assert line.endswith(f' "{shown}" "{shown}"')


def test_successes_are_sampled_and_refusals_are_not(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(BASE + KEYS + "access_log: {sample_successes: 0}\n")
    for _ in range(3):
        assert sidecar.ask("GET", "/public/x").status == 200
        assert sidecar.ask("GET", "/items/x").status == 401
    assert sidecar.stop() == 0
    assert [('"status":401' in line) for line in sidecar.process.stdout.all()] == [True] * 3
