"""Reading access logs, whatever else they contain, and however they are compressed."""

import gzip
import io
import json
import tracemalloc
from typing import Any

import pytest

from sidecar.core.model import ApiKey
from sidecar.rehearsal.recorded import MOST_BYTES, LogError, RecordedRequest, RecordedRequests, opened
from sidecar.telemetry.access_log import JsonLines
from sidecar.telemetry.redaction import Redaction
from tests.unit.telemetry.test_accesslog import access

KEY = ApiKey(
    id="key_1", name="ci", prefix="hv_live_abcd", digest=b"secret", algorithm="sha256", tenant="acme",
    environment="live", plan="pro", scopes=("streams:read", "videos:*"), created_at=0, created_by="test",
)  # fmt: skip
LINE = JsonLines(Redaction(("hv_live_",)), share=0.1)


def line(**values: Any) -> bytes:
    return json.dumps({"method": "GET", "path": "/a", "status": 200, **values}).encode() + b"\n"


def read(log: bytes) -> tuple[list[RecordedRequest], RecordedRequests]:
    requests = RecordedRequests(io.BytesIO(log))
    return list(requests), requests


def paths(log: bytes) -> list[str]:
    return [request.path for request in read(log)[0]]


def test_what_was_written_can_be_read() -> None:
    written = access(
        key=KEY,
        credential="key",
        route="GET /v1/streams",
        status=200,
        client_address="192.0.2.1",
        config="3f2a91c0bd12",
    )
    [request], _ = read(LINE(written) + b"\n")
    assert request == RecordedRequest(
        time="2026-03-01T12:00:00.062Z", request_id="r1", key_id="key_1", key_prefix="hv_live_abcd", tenant="acme",
        environment="live", plan="pro", scopes=("streams:read", "videos:*"), credential="key",
        route="GET /v1/streams", method="GET", path="/v1/streams", status=200, client_address="192.0.2.1",
        config="3f2a91c0bd12", sampled=0.1,
    )  # fmt: skip
    assert request.weight == 10


def test_a_line_of_an_older_version_is_a_request() -> None:
    old = (
        b'{"time":"2026-01-01T00:00:00.000Z","key_id":null,"method":"GET","path":"/","status":401,"reason":"no_route"}'
    )
    [request], _ = read(old)
    assert (request.scopes, request.credential, request.config, request.weight) == ((), None, None, 1)


FOREIGN = {
    "a line of another program": b"Starting ...\n",
    "Apache's format": b'192.0.2.1 - - [01/Mar/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 - "-" "-"\n',
    "another object": b'{"event": "started"}\n',
    "a number": b"7\n",
    "a wrong type": line(status="200"),
    "a null for a path": line(path=None),
    "a share of nothing": line(sampled=0),
    "a share of more than all": line(sampled=1.5),
    "a share that stands for endlessly many": line(sampled=5e-324),
    "an unknown credential": line(credential="cookie"),
    "half a line": line()[:20] + b"\n",
    "two in one line": line()[:-1] + line(),
    "bytes that are not UTF-8": b'{"method":"GET","path":"/\xff","status":200}\n',
    "binary": bytes(range(10)) + bytes(range(11, 256)) + b"\n",
    "deep nesting": b"[" * 60_000 + b"\n",
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_lines_that_are_not_requests_are_counted_and_the_first_is_named(foreign: bytes) -> None:
    found, requests = read(line(path="/1") + b"\r\n\n" + foreign + foreign + line(path="/2"))
    assert [request.path for request in found] == ["/1", "/2"]
    assert (requests.counts.foreign, requests.counts.first_unread, requests.counts.lines) == (2, 4, 4)


def test_a_long_line_is_skipped_and_never_held() -> None:
    pieces = iter([line(path="/1"), *[b"x" * 65_536] * 1000, b"\n" + line(path="/2"), b"y" * (MOST_BYTES + 1)])

    class Slowly(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return next(pieces, b"")

    requests = RecordedRequests(Slowly())
    tracemalloc.start()
    assert [request.path for request in requests] == ["/1", "/2"]
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()
    assert (requests.counts.too_long, requests.counts.first_unread) == (2, 2)


def test_a_line_of_the_longest_length_is_read() -> None:
    longest = line(path="/" + "a" * (MOST_BYTES + 1 - len(line(path="/"))))
    assert len(longest) == MOST_BYTES + 1
    assert len(paths(longest)) == 1
    assert paths(longest.replace(b"/a", b"/aa")) == []


EMPTY = {"nothing": b"", "a line": b"\n", "a mark": b"\xef\xbb\xbf", "blanks": b" \r\n\r\n", "gzip": gzip.compress(b"")}


@pytest.mark.parametrize("log", EMPTY.values(), ids=EMPTY)
def test_an_empty_log_has_no_requests(log: bytes) -> None:
    found, requests = read(log)
    assert found == [] and requests.counts.lines == 0


MARKED = {"a mark": b"\xef\xbb\xbf" + line(), "CRLF": line().replace(b"\n", b"\r\n"), "no end": line()[:-1]}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("log", MARKED.values(), ids=MARKED)
def test_windows_line_ends_a_bom_and_a_missing_final_newline_do_not_matter(log: bytes, pack: Any) -> None:
    assert paths(pack(log)) == ["/a"]


def test_gzip_is_known_by_what_it_begins_with_and_may_have_several_members() -> None:
    members = [gzip.compress(line(path=f"/{number}") * 10_000) for number in range(3)]
    assert paths(b"".join(members) + bytes(512)) == ["/0"] * 10_000 + ["/1"] * 10_000 + ["/2"] * 10_000


def test_a_gzip_bomb_is_not_kept_in_memory() -> None:
    log = gzip.compress(b"x" * 100_000_000)
    tracemalloc.start()
    assert read(log)[1].counts.too_long == 1
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


DAMAGED = {
    "cut off": (lambda packed: packed[:-200], "cut off"),
    "cut off in its first bytes": (lambda packed: packed[:6], "cut off"),
    "damaged": (lambda packed: packed[:-4] + b"abcd", "damaged"),
    "followed by something else": (lambda packed: packed + b"something else", "damaged"),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGED.values(), ids=DAMAGED)
def test_what_was_read_of_a_damaged_gzip_file_is_kept(damage: Any, told: str) -> None:
    packed = gzip.compress(
        b"".join(line(path=f"/{number}", request_id=f"{number * 7919:x}") for number in range(20_000))
    )
    requests = RecordedRequests(io.BytesIO(damage(packed)))
    found = []
    with pytest.raises(LogError, match=told):
        found.extend(request.path for request in requests)
    assert found == [f"/{number}" for number in range(len(found))]
    assert len(found) > 10_000 or len(damage(packed)) < 10
    assert requests.counts.requests == len(found)


OTHERWISE = {
    "zstd": b"\x28\xb5\x2f\xfd",
    "bzip2": b"BZh9",
    "xz": b"\xfd7zXZ\x00",
    "zip": b"PK\x03\x04",
    "UTF-16": "{".encode("utf-16"),
}


@pytest.mark.parametrize("begin", OTHERWISE.values(), ids=OTHERWISE)
def test_a_log_in_another_compression_is_refused_with_a_remedy(begin: bytes) -> None:
    with pytest.raises(LogError, match=r"stdin|convert"):
        read(begin + bytes(1000))


def test_an_unreadable_file_is_reported(tmp_path: Any) -> None:
    for path in (tmp_path, tmp_path / "missing", "a\0b"):
        with pytest.raises(LogError, match="cannot be read"), opened(str(path)):
            pass


def test_an_endless_device_is_refused_as_a_log() -> None:
    for path in ("/dev/zero", "/dev/full"):
        with pytest.raises(LogError, match="device"), opened(path):
            pass
    with opened("/dev/null") as file:
        assert list(RecordedRequests(file)) == []


def test_a_query_logged_by_another_program_is_not_shown() -> None:
    [request], _ = read(line(path="/a?token=hidden"))
    assert request.path_alone == "/a"


def test_paths_that_are_redacted_or_cut_are_known() -> None:
    key = "hv_live_" + "aB3" * 14
    told = {"/a/b": None, f"/a/{key}": "redacted", "/" + "a/" * 3000: "cut"}
    for target, hidden in told.items():
        [request], _ = read(LINE(access(target=target)))
        assert request.hidden == hidden


def test_progress_is_reported_in_bytes_of_the_file() -> None:
    told: list[int] = []
    log = line() * 50_000
    for _ in RecordedRequests(io.BytesIO(log), progress=told.append):
        pass
    assert told[-1] == len(log)
    assert told == sorted(set(told))
