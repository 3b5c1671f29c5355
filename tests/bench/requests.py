"""The bytes of the requests that a load sends, ready before it begins.

The head is what HTTP libraries send: `Host`, the key, and with `client_lines` what they add by themselves. A path or a
line may contain FRESH, for which the load generator puts another sixteen hexadecimal digits into each request.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.keys import Kind, keys_of

FRESH = "{fresh}"
CLIENT_LINES = (
    "Accept: application/json",
    "Accept-Encoding: gzip, deflate",
    "Accept-Language: en",
    "User-Agent: example-client/1.4.2",
)
# As W3C Trace Context and a session cookie have it; each digit of the two ids is another one in the next request.
FRESH_LINES = (f"traceparent: 00-{FRESH}{FRESH}-{FRESH}-01", f"Cookie: session={FRESH}{FRESH}")
SMALL_BODY = b'{"name":"stream","state":"live","labels":["a","b"]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """One request for each of `keys` keys, sent in turn."""

    method: str = "GET"
    path: str = "/v1/items"
    """{n} counts from 0 to 999."""
    lines: Sequence[str] = ()
    """Header lines beside `Host` and `Authorization`; a tuple."""
    body: bytes = b""
    content_type: str = "application/octet-stream"
    keys: int = 1_000
    kind: Kind = "good"

    def made(self) -> Iterator[bytes]:
        """Head and body in one piece, which the load generator writes at once."""
        more = [*self.lines]
        if self.body:
            more += [f"Content-Type: {self.content_type}", f"Content-Length: {len(self.body)}"]
        for number, key in enumerate(keys_of(self.kind, self.keys)):
            target = self.path.replace("{n}", str(number % 1000))
            lines = [f"{self.method} {target} HTTP/1.1", "Host: api.example.com"]
            if key:
                lines.append(f"Authorization: Bearer {key}")
            yield "\r\n".join([*lines, *more, "\r\n"]).encode() + self.body

    def write(self, file: Path) -> Path:
        """For the load generators: each request after a line with its length."""
        with file.open("wb") as out:
            for request in self.made():
                out.write(b"%d\n%b" % (len(request), request))
        return file


def read(file: Path) -> list[bytes]:
    """The requests in a file that `write` made."""
    found = []
    with file.open("rb") as source:
        while length := source.readline():
            found.append(source.read(int(length)))
    return found


def freshened(request: bytes, number: int) -> bytes:
    """FRESH replaced, as wrk.lua does it."""
    return request.replace(FRESH.encode(), b"%016x" % number)
