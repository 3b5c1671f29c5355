"""A request that was tampered with never ends in a 500, a traceback or a hang, and nothing that the gate did not let
through reaches the upstream."""

import re
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from tests.heavy.fuzz.budget import budget
from tests.heavy.fuzz.mutations import cut, mutated, until_quiet
from tests.heavy.fuzz.site import FuzzSite
from tests.wire.corpus.stage import HANG_SECONDS, untroubled

KEY = b"Authorization: Bearer <key>\r\n"
SMUGGLED = b"GET /closed/x HTTP/1.1\r\nHost: api.test\r\nX-Auth-Key-Id: evil\r\nX-Auth-Subject: root\r\n\r\n"
HEAD = b"Host: api.test\r\n" + KEY
SEEDS = [
    b"GET /allowed/x HTTP/1.1\r\n" + HEAD + b"\r\n",
    b"GET /allowed/a%20b/c;d?e=/closed/x HTTP/1.1\r\n" + HEAD + b"X-Auth-Subject: root\r\nX-Other: y\r\n\r\n",
    b"GET http://api.test/allowed/x HTTP/1.1\r\n" + HEAD + b"Connection: keep-alive, X-Other\r\nX-Other: y\r\n\r\n",
    b"POST /allowed/x HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    b"POST /allowed/x HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"5\r\nhello\r\n%x;a=b\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\nX-Sum: 1\r\n\r\n",
    b"PUT /allowed/x HTTP/1.1\r\n" + HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    b"HEAD /allowed/x HTTP/1.0\r\nConnection: keep-alive\r\n" + KEY + b"\r\n",
    b"GET /allowed/x HTTP/1.1\r\n" + HEAD + b"\r\n" + SMUGGLED + b"DELETE /allowed/y HTTP/1.1\r\n" + HEAD + b"\r\n",
    b"GET /closed/x HTTP/1.1\r\n" + HEAD + b"X-Auth-Key-Id: evil\r\n\r\n",
    b"GET /allowed/x HTTP/1.1\r\nHost: api.test\r\n\r\n",
]  # fmt: skip
LAST = b"GET /allowed/last HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n"
ALIVE = "/allowed/alive"
QUIET_SECONDS = 0.05
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@budget(600)
@given(raw=mutated(SEEDS), places=st.lists(st.integers(0, 4000), max_size=3))
def test_a_tampered_request_gets_nothing_through(fuzz_site: FuzzSite, raw: bytes, places: list[int]) -> None:
    sent = (raw + LAST).replace(b"<key>", fuzz_site.key.text.encode())
    with fuzz_site.sidecar.connect() as connection:
        with suppress(ConnectionError):
            for segment in cut(sent, places):
                connection.send(segment)
        received = until_quiet(connection, QUIET_SECONDS)
    assert [status for status in _STATUS.findall(received) if status >= b"500"] == [], received
    with fuzz_site.sidecar.connect() as connection:
        connection.lose_patience(HANG_SECONDS)
        response = connection.ask("GET", ALIVE, [("Authorization", f"Bearer {fuzz_site.key.text}")])
    assert (response.status, response.json()["target"]) == (200, ALIVE)
    for seen in fuzz_site.upstream.requests():
        fuzz_site.check_allowed(seen)
    fuzz_site.upstream.clear()
    untroubled(fuzz_site.sidecar)
