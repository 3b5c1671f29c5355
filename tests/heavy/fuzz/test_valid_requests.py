"""A valid request arrives byte for byte, but for what is documented.

The key and hop-by-hop fields are removed, identity and forwarding fields added; white space around values is one space;
chunks are cut anew, without extensions; Host comes first and framing last.
"""

from hypothesis import given

from tests.heavy.fuzz.budget import budget
from tests.heavy.fuzz.requests import Request, valid
from tests.heavy.fuzz.site import FuzzSite

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "PURGE", "REPORT"]
ADDED = {
    b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host",
    b"x-request-id", b"x-auth-key-id", b"x-auth-subject", b"x-auth-scopes",
}  # fmt: skip


@budget(150)
@given(request=valid("/allowed", METHODS))
def test_a_valid_request_arrives_byte_for_byte(fuzz_site: FuzzSite, request: Request) -> None:
    raw = request.raw(fuzz_site.credential)
    with fuzz_site.sidecar.connect() as connection:
        for segment in request.segments(raw):
            connection.send(segment)
        response = connection.receive(head_only=request.method == b"HEAD")
    assert response.status == 200, response
    seen = fuzz_site.upstream.last()
    first, host, *lines = seen.head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert (first, host) == (b"%b %b HTTP/1.1" % (request.method, request.target), b"Host: api.test")
    framing = [b"%b: %b" % field for field in request.framing]
    kept = [b"%b: %b" % field for field in request.fields]
    assert lines[: len(kept)] == kept
    assert lines[len(lines) - len(framing) :] == framing
    added = lines[len(kept) : len(lines) - len(framing)]
    assert sorted(line.partition(b":")[0].lower() for line in added) == sorted(ADDED)
    assert seen.body == request.body
    fuzz_site.check_allowed(seen)


@budget(100)
@given(request=valid("/elsewhere", METHODS))
def test_a_valid_request_elsewhere_does_not_arrive(fuzz_site: FuzzSite, request: Request) -> None:
    with fuzz_site.sidecar.connect() as connection:
        connection.send(request.raw(fuzz_site.credential))
        response = connection.receive(head_only=request.method == b"HEAD")
    assert response.status == 403, response
    assert fuzz_site.upstream.requests() == []
