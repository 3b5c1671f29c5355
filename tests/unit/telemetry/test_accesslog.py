"""The access log: one line per request, off the request's path, whatever happens."""

import asyncio
import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from sidecar.core.model import ApiKey
from sidecar.telemetry.access_log import Access, AccessLog, descriptor_writer

NAMES = [
    "time", "request_id", "key_id", "key_prefix", "tenant", "route", "method", "path", "status", "reason", "seconds",
    "upstream_seconds", "bytes_in", "bytes_out", "client_address",
]  # fmt: skip


def access(**values: object) -> Access:
    plain: dict[str, object] = {
        "at": 1_772_366_400.0625,
        "request_id": "r1",
        "method": "GET",
        "target": "/v1/streams",
        "status": 200,
        "seconds": 0.0123456789,
        "client_address": "192.0.2.1",
    }
    return Access(**{**plain, **values})


async def written(*lines: Access) -> bytes:
    batches: list[bytes] = []
    log = AccessLog(batches.append)
    for line in lines:
        log.record(line)
    assert batches == []
    await log.flush()
    return b"".join(batches)


async def test_a_line_says_who_requested_what_and_the_outcome() -> None:
    key = ApiKey(
        id="key_1", name="ci", prefix="hv_live_abcd", digest=b"secret", algorithm="sha256", tenant="acme",
        created_at=0, created_by="test",
    )  # fmt: skip
    line = access(
        key=key,
        route="GET /v1/streams",
        status=401,
        reason="revoked_key",
        upstream_seconds=0.01,
        bytes_in=3,
        bytes_out=9,
    )
    told = json.loads(await written(line))
    assert list(told) == NAMES
    assert told["time"] == "2026-03-01T12:00:00.062Z"
    assert (told["key_id"], told["key_prefix"], told["tenant"]) == ("key_1", "hv_live_abcd", "acme")
    assert (told["route"], told["status"], told["reason"]) == ("GET /v1/streams", 401, "revoked_key")
    assert (told["seconds"], told["upstream_seconds"]) == (0.012346, 0.01)
    assert (told["bytes_in"], told["bytes_out"], told["client_address"]) == (3, 9, "192.0.2.1")


async def test_unknown_values_are_null() -> None:
    told = json.loads(await written(access()))
    assert list(told) == NAMES
    assert [name for name in NAMES if told[name] is None] == [
        "key_id", "key_prefix", "tenant", "route", "reason", "upstream_seconds",
    ]  # fmt: skip


async def test_a_response_that_was_broken_off_is_told_apart_from_a_whole_one() -> None:
    for hostile in ("r1", "\udcff"):
        told = json.loads(await written(access(cut=True, request_id=hostile)))
        assert (told["status"], told["reason"], told["cut"]) == (200, None, True)
        assert "cut" not in json.loads(await written(access(request_id=hostile)))


async def test_the_query_and_the_digest_are_never_written() -> None:
    out = await written(access(target="/a?api_key=canary&x=/b?c"), access(target="?canary"))
    assert b"canary" not in out
    assert [json.loads(line)["path"] for line in out.splitlines()] == ["/a", ""]


@pytest.mark.parametrize(
    "hostile",
    [
        'a"b\\c', "a\r\nb", "\x00\x1b[31m\x7f", "\u2028\u2029\x85\x0b\x0c\x1c", "\udcff\ud800", "\ud83d\ude00", "é😀",
        "<img src=x onerror=alert(1)>", "=cmd|' /C calc'!A0",
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["request_id", "method", "target", "client_address", "route", "reason"])
async def test_a_line_stays_one_line_whatever_it_holds(hostile: str, field: str) -> None:
    out = await written(access(**{field: hostile}), access())
    assert out.isascii()
    assert out.endswith(b"\n")
    first, second = out.decode().splitlines()
    told = json.loads(first)["path" if field == "target" else field]
    assert told == hostile.encode("utf-8", "backslashreplace").decode()
    assert json.loads(second)["path"] == "/v1/streams"


async def test_long_values_are_cut() -> None:
    out = await written(access(target="/" + "a" * 60_000, method="M" * 9000, request_id="r" * 9000))
    assert len(out) < 8000


async def test_lines_over_the_bound_are_dropped_and_counted() -> None:
    batches: list[bytes] = []
    log = AccessLog(batches.append, max_lines=10)
    for number in range(25):
        log.record(access(request_id=f"r{number}"))
    await log.flush()
    assert [json.loads(line)["request_id"] for line in b"".join(batches).splitlines()] == [f"r{n}" for n in range(10)]
    assert log.dropped == 15
    log.record(access())
    assert log.dropped == 15


async def test_long_targets_count_for_the_bound() -> None:
    log = AccessLog([].append, max_chars=10_000)
    for _ in range(5):
        log.record(access(target="/" + "a" * 4000))
    assert log.dropped == 3
    await log.flush()
    log.record(access(target="/" + "a" * 4000))
    assert log.dropped == 3


async def test_lines_are_written_as_time_goes_by_and_in_order() -> None:
    batches: list[bytes] = []
    arrived, loop = asyncio.Event(), asyncio.get_running_loop()

    def write(batch: bytes) -> None:
        batches.append(batch)
        if sum(one.count(b"\n") for one in batches) == 2000:
            loop.call_soon_threadsafe(arrived.set)

    log = AccessLog(write)
    for number in range(2000):
        log.record(access(request_id=f"{number}"))
    running = asyncio.create_task(log.run(interval=0))
    await arrived.wait()
    await stop(running)
    lines = b"".join(batches).splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [f"{number}" for number in range(2000)]


async def test_one_thread_writes_all_batches() -> None:
    writers: list[int] = []
    log = AccessLog(lambda _: writers.append(threading.get_ident()))
    for number in range(1000):
        log.record(access(request_id=f"{number}"))
    await log.flush()
    assert len(writers) > 1
    assert len({*writers, threading.get_ident()}) == 2


async def test_a_stuck_reader_delays_neither_the_loop_nor_shutdown() -> None:
    release, stuck, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()
    log = AccessLog(blocking(release, stuck, loop))
    log.record(access())
    running = asyncio.create_task(log.run(interval=0))
    await stuck.wait()
    log.record(access())
    await stop(running)
    await log.flush(timeout=0)
    assert log.dropped == 1
    release.set()


async def test_writes_never_overlap() -> None:
    release, stuck, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()
    inside: list[int] = []
    block = blocking(release, stuck, loop)

    def write(batch: bytes) -> None:
        inside.append(1)
        assert len(inside) == 1
        block(batch)
        inside.pop()

    log = AccessLog(write)
    log.record(access())
    running = asyncio.create_task(log.run(interval=0))
    await stuck.wait()
    await stop(running)
    log.record(access())
    flushing = asyncio.create_task(log.flush())
    await asyncio.sleep(0)
    release.set()
    await flushing
    assert log.dropped == 0


@pytest.mark.parametrize("failure", [BrokenPipeError(), OSError(28, "No space left"), ValueError("closed file")])
async def test_lines_that_cannot_be_written_are_counted_and_the_next_ones_tried(failure: Exception) -> None:
    batches: list[bytes] = []
    failures = [failure]

    def write(batch: bytes) -> None:
        if failures:
            raise failures.pop()
        batches.append(batch)

    log = AccessLog(write)
    log.record(access())
    log.record(access())
    await log.flush()
    assert log.dropped == 2
    log.record(access())
    await log.flush()
    assert len(batches) == 1
    assert log.dropped == 2


class _OneBadLine:
    """A format that cannot write one kind of request."""

    tells_client = False

    def __call__(self, access: Access) -> bytes:
        if access.method == "BAD":
            raise RuntimeError
        return access.target.encode()


async def test_a_line_that_cannot_be_made_is_counted_and_the_next_ones_are_written() -> None:
    batches: list[bytes] = []
    log = AccessLog(batches.append, line=_OneBadLine())
    log.record(access(method="BAD"))
    with pytest.raises(RuntimeError):
        await log.run(interval=0)
    assert log.dropped == 1
    log.record(access(method="BAD"))
    for _ in range(255):
        log.record(access())
    log.record(access(target="/last"))
    await log.flush()
    assert batches == [b"/last\n"]
    assert log.dropped == 257


async def test_a_pipe_whose_reader_left_is_survived() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = AccessLog(descriptor_writer(writer))
    log.record(access())
    await log.flush()
    os.close(writer)
    assert log.dropped == 1


async def test_a_full_pipe_that_does_not_block_gets_every_byte() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    log = AccessLog(descriptor_writer(writer))
    for _ in range(2000):
        log.record(access())
    got: list[bytes] = []
    reading = threading.Thread(target=lambda: got.extend(iter(lambda: os.read(reader, 4096), b"")))
    flushing = asyncio.create_task(log.flush())
    await asyncio.sleep(0)
    reading.start()
    await flushing
    os.close(writer)
    reading.join()
    os.close(reader)
    assert b"".join(got).count(b"\n") == 2000
    assert log.dropped == 0


def blocking(
    release: threading.Event, stuck: asyncio.Event, loop: asyncio.AbstractEventLoop
) -> Callable[[bytes], None]:
    """A `write` that reports when it is stuck, and stays stuck until released."""

    def write(_: bytes) -> None:
        loop.call_soon_threadsafe(stuck.set)
        release.wait(10)

    return write


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
