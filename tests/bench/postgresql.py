"""What a key store in PostgreSQL costs, beside SQLite's where they compare; run by hand, it takes some minutes.

    .venv/bin/python -m tests.bench.postgresql [KEYS]

Starts a server of its own with fsync on (needs initdb and postgres) and prints

- keys a second of `sidecar keys import` for KEYS (200,000 by default), and of PostgreSQL's own COPY of the same rows of
  keys and audit: into the same tables, whose indexes and triggers are part of it, and into bare ones;
- CPU microseconds of a cached lookup in both stores, and milliseconds of a lookup of a key that is not in memory;
- milliseconds of the pages of keys among a million, before and after ANALYZE.

The aims: 20,000 keys a second; cached lookups within 10 % of SQLite's; 99 of 100 misses under 5 ms; pages under 150 ms.
"""

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from itertools import islice
from pathlib import Path

from sidecar.keys.cache import MISS, KeyCache
from sidecar.keys.records import COLUMNS
from sidecar.runtime.tasks import SystemClock
from sidecar.store.store import Store, open_store
from tests.bench.importing import CONFIG, written
from tests.bench.key_pages import KINDS, PAGE, rows_of_a_million, timed
from tests.harness.keys import run_cli
from tests.harness.postgresql import PostgresqlServer, running_postgresql
from tests.unit.keys.making import digest_of, ignore

_KEYS = 200_000
_MISSES = 5_000
_PEEKS = 200_000
_AT_ONCE = 10_000


def main(count: int) -> None:
    with running_postgresql(fsync="on", autovacuum="off") as server, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        full, sqlite = _made(server), f"sqlite://{folder}/keys.db"
        _import(sqlite, folder, 1_000)
        _import(full, folder, count)
        _copy(server, full, count)
        asyncio.run(_look_up(sqlite, full, count))
        asyncio.run(_show_pages(server))


def _made(server: PostgresqlServer) -> str:
    url = server.database()
    made = run_cli("store", "make", "--store", url)
    assert made.exit_code == 0, made.output
    return url


def _import(url: str, folder: Path, count: int) -> None:
    """Twice, as the command does it."""
    config = folder / "sidecar.yaml"
    config.write_text(CONFIG)
    for turn, into in enumerate(("an empty store", "a store with as many")):
        file = folder / f"{turn}.jsonl"
        written(file, range(turn * count, turn * count + count))
        line = [sys.executable, "-m", "sidecar", "keys", "import", "-c", str(config), "--store", url, str(file)]
        started = time.perf_counter()
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        _tell(f"{url.partition(':')[0]}, import into {into}", count, time.perf_counter() - started)


def _tell(what: str, count: int, seconds: float) -> None:
    print(f"{what:44}{count / seconds:10,.0f} keys/s", flush=True)


def _copy(server: PostgresqlServer, full: str, count: int) -> None:
    """The first import's rows, from files of the server's own."""
    columns, rows = ", ".join(COLUMNS), server.folder / "rows"
    server.sql(f"COPY (SELECT {columns} FROM sidecar.api_key WHERE serial <= {count}) TO '{rows}.keys'", url=full)  # noqa: S608 - no input
    server.sql(f"COPY (SELECT * FROM sidecar.audit WHERE id <= {count}) TO '{rows}.audit'", url=full)  # noqa: S608 - no input
    for bare in (False, True):
        url, schema = _made(server), "sidecar"
        if bare:
            schema = "bare"
            tables = [f"CREATE TABLE bare.{table} (LIKE sidecar.{table})" for table in ("api_key", "audit")]
            server.sql("CREATE SCHEMA bare", *tables, "ALTER TABLE bare.api_key ALTER serial DROP NOT NULL", url=url)
        started = time.perf_counter()
        server.sql(f"COPY {schema}.api_key ({columns}) FROM '{rows}.keys'", url=url)
        server.sql(f"COPY {schema}.audit FROM '{rows}.audit'", url=url)
        what = "bare tables" if bare else "the store's tables"
        _tell(f"COPY into {what}", count, time.perf_counter() - started)


async def _look_up(sqlite: str, full: str, count: int) -> None:
    costs = dict[str, float]()
    for url in (sqlite, full) * 3:  # In turn, because machines are noisy.
        store = await open_store(url, create=False, watched=True, clock=SystemClock(), timings=ignore)
        engine = url.partition(":")[0]
        costs[engine] = min(await _hit(store), costs.get(engine, 1e9))
        await store.close()
    told = ", ".join(f"{engine} {cost:.3f} µs" for engine, cost in costs.items())
    print(f"cached lookup: {told}; ratio {costs['postgresql'] / costs['sqlite']:.2f}")
    store = await open_store(full, create=False, watched=True, clock=SystemClock(), timings=ignore)
    numbers = random.Random(7).choices(range(2 * count), k=_MISSES)  # noqa: S311 - a sample
    for kind, digests in (("stored", map(_digest, numbers)), ("unknown", map(digest_of, map(str, range(_MISSES))))):
        times = [await _missed(store, digest) for digest in digests]
        percentiles = statistics.quantiles(times, n=100)
        print(f"miss, {kind}: median {percentiles[49]:.2f} ms, 99 of 100 under {percentiles[98]:.2f} ms", flush=True)
    await store.close()


def _digest(number: int) -> bytes:
    """As `importing` makes them."""
    return sha256(str(number).encode()).digest()


async def _hit(store: Store) -> float:
    """Microseconds of CPU, which are steadier than those of the clock."""
    cache, digest = KeyCache(store.keys, size=1_000), _digest(7)
    assert await cache.find(digest, lambda: {digest: "sha256"})
    assert cache.peek(digest) is not MISS
    started = time.process_time()
    for _ in range(_PEEKS):
        cache.peek(digest)
    return (time.process_time() - started) / _PEEKS * 1e6


async def _missed(store: Store, digest: bytes) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    await store.keys.find({digest: "sha256"})
    return (time.perf_counter() - started) * 1e3


async def _show_pages(server: PostgresqlServer) -> None:
    url = _made(server)
    store = await open_store(url, create=False, clock=SystemClock(), timings=ignore)
    rows = rows_of_a_million()
    async with store.database.transaction("import") as connection:
        while some := [*islice(rows, _AT_ONCE)]:
            await connection.insert(f"INSERT INTO api_key ({', '.join(COLUMNS)})", some)
    print(f"{'milliseconds for a page of ' + str(PAGE):44}{'unanalysed':>14}{'analysed':>14}", flush=True)
    slowest = list[list[float]]()
    for analysed in (False, True):
        if analysed:
            server.sql("VACUUM ANALYZE sidecar.api_key", url=url)
        slowest.append([max((await timed(store, wanted))[1]) for wanted in KINDS.values()])
    for kind, before, after in zip(KINDS, *slowest, strict=True):
        print(f"{kind:44}{before:14.1f}{after:14.1f}", flush=True)
    await store.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else _KEYS)
