"""Microseconds of what is counted and told on a request's path. Run by hand: `python -m tests.bench.hotpath_counts`."""

from collections.abc import Callable, Coroutine
from timeit import repeat
from typing import Any

from sidecar.core.model import Bucket, Quota, Window
from sidecar.core.quotas import RateLimitFields
from sidecar.limiter.memory import MemoryLimiter
from sidecar.telemetry.access_log import Access, AccessLog, JsonLines
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.redaction import Redaction

CALLS = 100_000
NOW = 1_772_366_400.0


def finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("it waited")


def show(name: str, call: Callable[[], object]) -> None:
    print(f"{name:32} {min(repeat(call, number=CALLS, repeat=5)) / CALLS * 1e6:6.2f} µs")


def line() -> Access:
    return Access(
        at=NOW, request_id="r1", route="GET /a", method="GET", target="/a?b", status=200, seconds=0.01,
        upstream_seconds=0.01, bytes_in=0, bytes_out=100, client_address="192.0.2.1",
    )  # fmt: skip


def main() -> None:
    limiter, metrics, log = MemoryLimiter(), Metrics(), AccessLog(lambda _: None, max_lines=10 * CALLS)
    encode = JsonLines(Redaction(("hv_live_",)))
    for window in Window:
        quota = Quota(name=window, limit=10**9, period="hour", window=window)
        buckets = (Bucket(quota=quota, subject=("key-1",), limit=10**9),)
        show(f"take, {window}", lambda buckets=buckets: finish(limiter.take(buckets, NOW)))
        states = finish(limiter.take(buckets, NOW)).states
    fields = RateLimitFields(x=True, reset="unix", ietf=True)
    show("RateLimitFields", lambda: fields(states, now=NOW))
    show("finished", lambda: metrics.finished("GET /a", "GET", 200, seconds=0.003, upstream_seconds=0.002))
    show("taken", lambda: metrics.taken(states))
    show("record, line made", lambda: log.record(line()))
    show("encode (off the path)", lambda: encode(line()))


if __name__ == "__main__":
    main()
