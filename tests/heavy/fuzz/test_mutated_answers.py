"""An upstream's answer that was tampered with never ends in a 500, a traceback or a hang, and nobody else sees it."""

import re

from hypothesis import given
from hypothesis import strategies as st

from tests.harness.wire import Connection
from tests.heavy.fuzz.budget import budget
from tests.heavy.fuzz.mutations import mutated, until_quiet
from tests.heavy.fuzz.site import FuzzSite
from tests.wire.corpus.stage import HANG_SECONDS, untroubled

SEEDS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n, well\r\n0\r\nX-Sum: 1\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nSet-Cookie: a=b\r\n\r\nhello",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nETag: x\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
]
QUIET_SECONDS = 0.05
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@budget(250)
@given(raw=mutated(SEEDS), method=st.sampled_from(["GET", "HEAD", "POST"]), close=st.booleans())
def test_a_tampered_response_reaches_no_other_client(fuzz_site: FuzzSite, raw: bytes, method: str, close: bool) -> None:
    site, key = fuzz_site, [("Authorization", f"Bearer {fuzz_site.key.text}")]
    site.upstream.plan(raw, close=close)
    with site.sidecar.connect() as client:
        client.send(f"{method} /allowed/hostile HTTP/1.1\r\nHost: a\r\n{key[0][0]}: {key[0][1]}\r\n".encode())
        client.send(b"Connection: close\r\n\r\n")
        while not site.upstream.requests():
            pass  # The answer is planned for this request, and would go to the next one.
        received = until_quiet(client, HANG_SECONDS if close else QUIET_SECONDS)
    final = [status for status in _STATUS.findall(received) if status >= b"200"]
    assert b"500" not in final or b" 500 " in raw
    for target in ("/allowed/next", "/allowed/other"):
        with site.sidecar.connect() as other:
            check_own(other, target, key)
    for seen in site.upstream.requests():
        site.check_allowed(seen)
    site.upstream.clear()
    untroubled(site.sidecar)


def check_own(client: Connection, target: str, key: list[tuple[str, str]]) -> None:
    client.lose_patience(HANG_SECONDS)
    response = client.ask("GET", target, key)
    assert (response.status, response.json()["target"]) == (200, target)
