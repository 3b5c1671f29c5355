"""A store that is locked, damaged, removed, full or inaccessible."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.core.model import KeyStatus
from sidecar.keys.cache import MISS, KeyCache
from sidecar.keys.ports import KeyFilter, StoreUnavailable
from sidecar.store.sqlite.connection import FIND_SECONDS
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import ANN, NOW_US, Clock, a_key, digest_of, open_store, set_status
from tests.wire.keys.locking import EVERYBODY, RECOVERY, WRITER, locked


async def test_while_the_store_is_locked_cached_keys_work_and_others_are_unavailable(
    store: SqliteStore, path: str
) -> None:
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    cache = KeyCache(store.keys, size=10)
    known = await cache.find(digest_of("s1"), lambda: {digest_of("s1"): "sha256"})
    assert known is not None
    assert known.key == key
    with locked(path, EVERYBODY):
        for _ in range(2):
            assert cache.peek(digest_of("s1")) is known
            await asyncio.sleep(0)
            with pytest.raises(StoreUnavailable):
                await cache.find(digest_of("s2"), lambda: {digest_of("s2"): "sha256"})
    assert await cache.find(digest_of("s2"), lambda: {digest_of("s2"): "sha256"}) is None


@pytest.mark.parametrize("locks", [EVERYBODY, RECOVERY], ids=["held by a process", "recovered by a process"])
async def test_while_a_lock_hides_changes_no_key_is_valid(store: SqliteStore, path: str, locks: Sequence[str]) -> None:
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    cache = KeyCache(store.keys, size=10)
    await cache.find(digest_of("s1"), lambda: {digest_of("s1"): "sha256"})
    await set_status(store.keys, key.id, KeyStatus.REVOKED)
    await asyncio.sleep(0)
    with locked(path, locks):
        for _ in range(2):
            assert cache.peek(digest_of("s1")) is MISS
            with pytest.raises(StoreUnavailable, match=r"(held|locked) by another process"):
                await cache.find(digest_of("s1"), lambda: {digest_of("s1"): "sha256"})
    found = await cache.find(digest_of("s1"), lambda: {digest_of("s1"): "sha256"})
    assert found is not None and found.key.status is KeyStatus.REVOKED


async def test_the_loop_keeps_running_while_sqlite_waits_for_a_lock(store: SqliteStore, path: str) -> None:
    await store.keys.add([a_key("s1")], actor=ANN)
    with locked(path, EVERYBODY):
        asking = asyncio.create_task(store.keys.read_generation())
        for _ in range(20):
            await asyncio.sleep(0)
            assert store.keys.generation() is None
        assert not asking.done()
    assert await asking == await store.keys.read_generation()


async def test_an_index_that_was_cut_off_makes_the_store_unavailable(store: SqliteStore, path: str) -> None:
    size = os.path.getsize(path + "-shm")
    before = Path(path + "-shm").read_bytes()
    os.truncate(path + "-shm", 0)
    with pytest.raises(StoreUnavailable, match=r"-shm was cut off .*stop all .* restart"):
        store.keys.generation()
    Path(path + "-shm").write_bytes(before)
    assert os.path.getsize(path + "-shm") == size


async def test_a_process_that_was_paused_does_not_consider_the_store_dead(store: SqliteStore) -> None:
    """As with a lack of CPU, or a migrated machine: both the response and the timeout are due when it wakes."""
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    finding = asyncio.get_running_loop().create_task(store.keys.find({digest_of("s1"): "sha256"}))
    await asyncio.sleep(0)
    standing_still = threading.Event()
    standing_still.wait(FIND_SECONDS + 0.3)
    assert await finding == key


async def test_reads_continue_while_another_process_writes(store: SqliteStore, path: str) -> None:
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert await store.keys.find({digest_of("s1"): "sha256"}) == key
        assert isinstance(await store.keys.read_generation(), int)


async def test_a_write_that_finds_the_store_locked_says_so(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.store.sqlite.connection.WRITE_LOCK_SECONDS", 0.0)
    store = await open_store(path)
    with locked(path, WRITER), pytest.raises(StoreUnavailable, match="locked by another process"):
        await store.keys.add([a_key()], actor=ANN)
    await store.keys.add([a_key()], actor=ANN)
    await store.close()


@pytest.mark.parametrize("replaced", [True, False])
async def test_a_removed_store_is_noticed_and_never_written_to(
    store: SqliteStore, path: str, tmp_path: Path, replaced: bool
) -> None:
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    if replaced:
        await (await open_store(str(tmp_path / "other.db"))).close()
        os.replace(tmp_path / "other.db", path)
    else:
        os.unlink(path)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="restart"):
            await store.keys.read_generation()
    with pytest.raises(StoreUnavailable, match="restart"):
        await set_status(store.keys, key.id, KeyStatus.REVOKED, at=NOW_US)


COMPANIONS = ("-wal", "-shm")


def lose(path: str, how: str, suffix: str) -> None:
    """A companion of the store is removed or replaced."""
    os.replace(path + suffix, path + suffix + ".lost")
    if how == "replaced":
        Path(path + suffix).write_bytes(b"")


@pytest.mark.parametrize("suffix", COMPANIONS)
@pytest.mark.parametrize(("how", "said"), [("gone", "is gone"), ("replaced", "was replaced")])
async def test_a_companion_of_the_store_that_is_lost_is_noticed_and_no_write_is_acknowledged(
    path: str, clock: Clock, suffix: str, how: str, said: str
) -> None:
    store = await open_store(path, clock=clock)
    key = a_key("s1")
    await store.keys.add([key], actor=ANN)
    lose(path, how, suffix)
    with pytest.raises(StoreUnavailable, match=rf"{suffix} {said} .*stop all .* restart"):
        await set_status(store.keys, key.id, KeyStatus.REVOKED, at=NOW_US)
    clock.now += 20_000
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=said):
            await store.keys.read_generation()
    await store.close()


async def test_a_write_whose_log_is_lost_before_its_end_is_not_acknowledged(store: SqliteStore, path: str) -> None:
    with pytest.raises(StoreUnavailable, match="is gone"):
        async with store.database.transaction("write") as connection:
            await connection.execute("DELETE FROM usage")
            lose(path, "gone", "-wal")


_USER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute("SELECT count(*) FROM api_key").fetchone(), flush=True)
sys.stdin.read()
"""


async def test_no_process_opens_a_store_whose_log_was_removed_while_in_use(path: str) -> None:
    await (await open_store(path)).close()
    command = [sys.executable, "-c", _USER, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None and user.stdout.readline()
        for suffix in COMPANIONS:
            os.unlink(path + suffix)
        with pytest.raises(StoreUnavailable, match=r"gone while another process uses it: stop all .* restart"):
            await open_store(path)
        user.communicate()
    await (await open_store(path)).close()


async def test_changes_in_a_deleted_log_are_saved_by_the_process_that_exits(path: str) -> None:
    store = await open_store(path)
    await store.keys.add([a_key("s1")], actor=ANN)
    for suffix in COMPANIONS:
        os.unlink(path + suffix)
    await store.close()
    again = await open_store(path)
    assert await again.keys.find({digest_of("s1"): "sha256"}) is not None
    await again.close()


async def test_a_process_that_exits_keeps_the_log_started_by_another(path: str, clock: Clock) -> None:
    store = await open_store(path, clock=clock)
    await store.keys.add([a_key("s1")], actor=ANN)
    lose(path, "replaced", "-wal")
    Path(path + "-wal").write_bytes(b"what another process has written")
    await store.close()
    assert Path(path + "-wal").read_bytes() == b"what another process has written"


_CRASH = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("UPDATE api_key SET name = name || 'x'")
connection.execute("UPDATE generation SET value = value + 1")
if len(sys.argv) > 2:
    connection.execute("PRAGMA wal_checkpoint")
os._exit(0)
"""


async def crashed(path: str, *more: str) -> bytes:
    """A store with a log left by a crash. Returns a backup from before."""
    store = await open_store(path)
    await store.keys.add([a_key("s1"), a_key("s2")], actor=ANN)
    await store.close()
    backup = Path(path).read_bytes()
    subprocess.run([sys.executable, "-c", _CRASH, path, *more], check=True)
    assert os.path.getsize(path + "-wal") > 0
    later = Path(f"{path}.later")
    # Files have the time of the kernel's last tick, which may be that of the log's last write.
    while not later.exists() or later.stat().st_ctime_ns <= os.stat(path + "-wal").st_ctime_ns:
        later.write_bytes(b"")
    later.unlink()
    return backup


def copy_into(path: str, backup: bytes) -> None:
    """Like `cp`: the same file with another content."""
    Path(path).write_bytes(backup)


def copy_with_time(path: str, backup: bytes) -> None:
    """Like `cp -p`: the file seems older than the log."""
    copy_into(path, backup)
    os.utime(path, (1_700_000_000, 1_700_000_000))


def move(path: str, backup: bytes) -> None:
    """Like `mv`, `rsync -t`, `tar` and `kubectl cp`: another file, made before the log was written."""
    copy_with_time(path + ".backup", backup)
    os.rename(path + ".backup", path)


@pytest.mark.parametrize("more", [(), ("checkpoint",)], ids=["log only", "after a checkpoint"])
@pytest.mark.parametrize("restore", [copy_into, copy_with_time, move])
async def test_a_backup_copied_over_a_store_with_an_old_log_is_refused_with_a_remedy(
    path: str, restore: Callable[[str, bytes], None], more: tuple[str, ...]
) -> None:
    restore(path, await crashed(path, *more))
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"does not belong to .*-wal.*move .* away"):
            await open_store(path)
    for suffix in COMPANIONS:
        os.rename(path + suffix, path + suffix + ".old")
    store = await open_store(path)
    assert await store.keys.find({digest_of("s1"): "sha256"}) is not None
    await store.close()


_BACKED_UP = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
change = "UPDATE generation SET value = value + 1"
steps = sys.argv[2].split()
for step in steps:
    if step == "backup":
        copy = sqlite3.connect(sys.argv[1] + ".backup")
        connection.backup(copy)
        copy.execute(f"PRAGMA journal_mode = {sys.argv[3]}").fetchall()
        copy.close()
    else:
        connection.execute(change if step == "change" else "PRAGMA wal_checkpoint")
os._exit(0)
"""


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize(
    "steps",
    [
        "change backup change",
        "change change checkpoint change backup change",
        "change backup change checkpoint",
    ],
)
async def test_a_backup_of_what_the_log_has_further_back_is_refused_too(path: str, steps: str, mode: str) -> None:
    await crashed(path)
    subprocess.run([sys.executable, "-c", _BACKED_UP, path, steps, mode], check=True)
    copy_into(path, Path(path + ".backup").read_bytes())
    # Files have the time of the kernel's last tick, which may be that of the log's last write.
    while os.stat(path).st_ctime_ns <= os.stat(path + "-wal").st_ctime_ns:
        os.utime(path)
    with pytest.raises(StoreUnavailable, match=r"does not belong to .*-wal"):
        await (await open_store(path)).close()


async def test_a_backup_is_refused_however_old_the_log_seems(path: str) -> None:
    await crashed(path)
    subprocess.run([sys.executable, "-c", _BACKED_UP, path, "change backup change", "DELETE"], check=True)
    copy_into(path, Path(path + ".backup").read_bytes())
    os.utime(path + "-wal")
    with pytest.raises(StoreUnavailable, match=r"put it back first$"):
        await open_store(path)


@pytest.mark.parametrize("more", [(), ("checkpoint",)], ids=["log only", "after a checkpoint"])
async def test_a_store_that_a_crash_has_left_opens_with_its_log(path: str, more: tuple[str, ...]) -> None:
    await crashed(path, *more)
    if more:
        after = os.stat(path + "-wal").st_mtime_ns + 1
        os.utime(path, ns=(after, after))
    store = await open_store(path)
    key = await store.keys.find({digest_of("s1"): "sha256"})
    assert key is not None and key.name.endswith("x")
    await store.close()


async def test_a_store_that_a_crash_has_left_opens_after_all_its_files_got_another_owner(path: str) -> None:
    await crashed(path)
    for suffix in ("-wal", "-shm", ""):
        os.chmod(path + suffix, 0o640)
    store = await open_store(path)
    key = await store.keys.find({digest_of("s1"): "sha256"})
    assert key is not None and key.name.endswith("x")
    await store.close()


async def test_a_database_that_alone_changed_its_owner_opens_after_confirmation(path: str) -> None:
    await crashed(path)
    os.chmod(path, 0o640)
    with pytest.raises(StoreUnavailable, match=r"If nothing was copied, .*`touch .*-wal` says so"):
        await open_store(path)
    os.utime(path + "-wal")
    await (await open_store(path)).close()


async def test_a_damaged_store_is_unavailable_and_says_what_to_do(path: str) -> None:
    store = await open_store(path)
    for _ in range(50):
        await store.keys.add([a_key(metadata={"note": "x" * 500})], actor=ANN)
    await store.close()
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (os.path.getsize(path) - 4096))
    with pytest.raises(StoreUnavailable, match=r"damaged.*backup"):
        damaged = await open_store(path, create=False)
        try:
            await damaged.list(KeyFilter())
        finally:
            await damaged.close()


@pytest.mark.parametrize(
    ("content", "advice"),
    [(b"no database, but long enough to be taken for one" * 99, "not a SQLite database"), (b"", "empty")],
)
async def test_a_file_that_is_not_a_store_is_refused_and_left_unchanged(path: str, content: bytes, advice: str) -> None:
    Path(path).write_bytes(content)
    with pytest.raises(StoreUnavailable, match=advice):
        await open_store(path, create=False)
    assert Path(path).read_bytes() == content


async def test_a_missing_store_is_refused_with_advice_and_nothing_is_made(path: str) -> None:
    with pytest.raises(StoreUnavailable, match="sidecar keys issue"):
        await open_store(path, create=False)
    assert not Path(path).exists()


@pytest.mark.parametrize("place", ["no/such/folder/keys.db", "."])
async def test_a_place_that_can_hold_no_store_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"cannot be made|is a folder"):
        await open_store(str(tmp_path / place))


_NOBODY = """
import os, sys
from sidecar.store.sqlite.connection import prepare
os.setgid(65534), os.setuid(65534)
try:
    prepare(sys.argv[1], create=False)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
async def test_a_store_of_another_owner_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = f"{folder}/keys.db"
        await (await open_store(path)).close()
        said = subprocess.run([sys.executable, "-c", _NOBODY, path], capture_output=True, text=True, check=True).stdout
    assert said.startswith("StoreUnavailable")
    assert "may not read and write" in said


_FULL = """
import asyncio, resource, signal, sys
from sidecar.keys.ports import KeyFilter, StoreUnavailable
from tests.wire.keys.locking import EVERYBODY, RECOVERY, WRITER, locked
from tests.unit.keys.making import ANN, a_key, digest_of, open_store

async def main():
    store = await open_store(sys.argv[1])
    kept = [a_key("kept")]
    await store.keys.add([kept[0]], actor=ANN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    try:
        while True:
            key = a_key(metadata={"note": "x" * 900})
            await store.keys.add([key], actor=ANN)
            kept.append(key)
    except StoreUnavailable as error:
        print(error)
    assert await store.keys.find({digest_of("kept"): "sha256"}) == kept[0]
    assert (await store.keys.list(KeyFilter()))[::-1] == kept
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    kept.append(a_key())
    await store.keys.add([kept[-1]], actor=ANN)
    assert (await store.keys.list(KeyFilter()))[::-1] == kept
    await store.close()

asyncio.run(main())
"""


async def test_on_a_full_disk_acknowledged_keys_stay_and_it_recovers(path: str) -> None:
    done = subprocess.run([sys.executable, "-c", _FULL, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be" in done.stdout
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        keys, audited = connection.execute(
            "SELECT (SELECT count(*) FROM api_key), (SELECT count(*) FROM audit)"
        ).fetchone()
    assert keys == audited > 2
