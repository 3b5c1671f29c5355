"""The harness tells the truth: what it sends is what the upstream records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import forked, forks
from tests.harness.processes import clean_environ
from tests.harness.recording import Upstream
from tests.harness.running import EXAMPLES, StartSidecar
from tests.harness.wire import Connection, exchange


def test_the_upstream_records_the_exact_bytes_of_a_request(upstream: Upstream) -> None:
    head = b"POST /a%20b?x=%2F HTTP/1.1\r\nHost: h\r\nx-ODD:  \xff v \r\nContent-Length: 3\r\n\r\n"
    response = exchange(("127.0.0.1", upstream.port), head + b"\x00\r\n")
    assert (response.status, response.json()["target"]) == (200, "/a%20b?x=%2F")
    seen = upstream.last()
    assert (seen.head, seen.body, seen.header("X-Odd")) == (head, b"\x00\r\n", "\xff v")


def test_a_chunked_body_is_recorded_without_its_framing(upstream: Upstream) -> None:
    head = b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert exchange(("127.0.0.1", upstream.port), head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n").status == 200
    assert upstream.last().body == b"abcde"


def test_malformed_requests_are_recorded_as_such(upstream: Upstream) -> None:
    assert exchange(("127.0.0.1", upstream.port), b"nonsense\r\n\r\n").status == 400
    assert upstream.last().malformed


def test_a_scripted_response_is_sent_byte_for_byte(upstream: Upstream) -> None:
    raw = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nuntil closed"
    upstream.plan(raw, close=True)
    with Connection(("127.0.0.1", upstream.port)) as connection:
        response = connection.ask("GET", "/")
        assert (response.status, response.interim, response.body) == (200, (103,), b"until closed")
        assert response.all("set-cookie") == ["a", "b"]
        assert connection.rest() == b""
    upstream.clear()


def test_requests_on_one_connection_share_its_number(upstream: Upstream) -> None:
    with Connection(("127.0.0.1", upstream.port)) as connection:
        assert [connection.ask("GET", target).status for target in ("/1", "/2")] == [200, 200]
        assert connection.ask("HEAD", "/3").body == b""
    exchange(("127.0.0.1", upstream.port), b"GET /4 HTTP/1.1\r\n\r\n")
    first, *others = [seen.connection for seen in upstream.requests()]
    assert others == [first, first, first + 1]


def test_a_sidecar_that_does_not_start_says_why(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    store = tmp_path / "keys.db"
    store.write_bytes(b"no database at all")
    with pytest.raises(AssertionError, match=r"exit status 1.*\nsidecar: .*keys\.db"):
        start_sidecar(EXAMPLES / "hoko.yaml", store=store)


def test_a_sidecar_serves_on_both_listeners_and_ends_with_its_log_written(
    start_sidecar: StartSidecar, upstream: Upstream
) -> None:
    sidecar = start_sidecar(EXAMPLES / "hoko.yaml")
    key = sidecar.keys.issue(scopes=("linksRead",), tenant="ws_1")
    assert sidecar.ask("GET", "/api/links", key=key).status == 200
    with Connection(sidecar.ops) as connection:
        assert connection.ask("GET", "/readyz").status == 200
    assert (sidecar.stop(), sidecar.stop()) == (0, 0)
    assert [json.loads(line)["key_id"] for line in sidecar.process.stdout.all()] == [key.id]
    assert upstream.last().target == "/api/links"


def test_a_forked_sidecar_has_the_shells_folder_streams_signals_and_status(tmp_path: Path) -> None:
    (tmp_path / "sidecar.yaml").write_text("listen: nowhere\n", encoding="utf-8")
    takes_messages = forks.server().fileno()
    sidecar = f"{sys.executable} -IS {forked.__file__} {takes_messages}"
    serve = f"{sidecar} serve -c {EXAMPLES / 'hoko.yaml'} --store $0 --listen 127.0.0.1:0 --ops 127.0.0.1:0"
    typed = f"""
        {sidecar} check sidecar.yaml; echo "status $?"
        echo 'listen: nobody' | {sidecar} check /dev/stdin; echo "status $?"
        set -m; {sidecar} store make --store $0 >made; {serve} 2>told &
        until grep -q ops told; do :; done; kill -TERM %1; wait %1; echo "status $?" """
    command = ["bash", "-c", typed, f"sqlite://{tmp_path}/keys.db"]
    done = subprocess.run(
        command, cwd=tmp_path, env=clean_environ(), capture_output=True, text=True, pass_fds=[takes_messages]
    )
    assert done.stdout.splitlines() == ["status 2", "status 2", "status 0"], done
    assert "sidecar.yaml:1:9: " in done.stderr and "/dev/stdin:1:9: " in done.stderr
