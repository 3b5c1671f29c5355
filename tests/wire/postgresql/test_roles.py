"""The roles of deploy/postgresql: a sidecar's role can do what it needs, and nothing else."""

import re
from collections.abc import AsyncIterator

import pytest

from sidecar.core.apikey import ForeignKeys, Hasher
from sidecar.core.model import KeyStatus
from sidecar.keys.lifecycle import Rehashing
from sidecar.keys.ports import AuditFilter, KeyFilter, NotWritten
from sidecar.keys.records import new_row
from sidecar.keys.transitions import retire_unused
from sidecar.store.store import Store, open_store
from sidecar.usage.recorder import LastUse, UsageRow
from tests.harness.keys import Keys, run_cli
from tests.harness.postgresql import PostgresqlServer
from tests.harness.processes import ROOT
from tests.harness.running import StartSidecar
from tests.unit.keys.making import ANN, NOW_US, Clock, a_key, ignore, set_status

FILES = ROOT / "deploy" / "postgresql"
DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def admin_url(server: PostgresqlServer) -> str:
    """Of a store that was made as the files say."""
    url = server.database()
    server.file(FILES / "roles.sql", url=url, admin_password="a", sidecar_password="s")
    admin = url.replace("postgres@", "sidecar_admin@")
    assert run_cli("store", "make", "--store", admin).exit_code == 0
    for _ in range(2):
        server.file(FILES / "grants.sql", url=admin)
    return admin


@pytest.fixture
async def admin(admin_url: str) -> AsyncIterator[Store]:
    store = await open_store(admin_url, create=False, clock=Clock(), timings=ignore)
    yield store
    await store.close()


@pytest.fixture
async def sidecar(admin_url: str) -> AsyncIterator[Store]:
    """As a sidecar opens it."""
    store = await open_store(of_sidecars(admin_url), create=False, watched=True, clock=Clock(), timings=ignore)
    yield store
    await store.close()


def of_sidecars(url: str) -> str:
    return url.replace("sidecar_admin@", "sidecar@")


async def test_a_sidecar_finds_keys_and_writes_their_use(admin: Store, sidecar: Store) -> None:
    key = a_key()
    await admin.keys.add([key], actor=ANN)
    assert await sidecar.keys.find({key.digest: "sha256"}) == key
    assert await sidecar.usage.touch({key.id: LastUse(at=NOW_US, address="192.0.2.1", networks=("192.0.2.0/24",))})
    row = UsageRow(key_id=key.id, at=NOW_US - NOW_US % DAY_US, route="GET /a", status_class=2, count=1)
    await sidecar.usage.add([row])
    await sidecar.usage.roll_up(NOW_US + DAY_US, 10)
    await sidecar.usage.prune(NOW_US + 2 * DAY_US, 10)
    await sidecar.anomalies.add_old_keys(before=NOW_US + 1, now=NOW_US, limit=9, describe=str)
    await sidecar.quotas.save([("general", '["k1"]', "{}", NOW_US + 5_000_000)])
    await sidecar.quotas.trim(most=0)
    assert await sidecar.statistics.counts()


async def test_a_sidecar_rehashes_and_retires_keys_with_audit_rows(admin: Store, sidecar: Store) -> None:
    old = ForeignKeys(prefix="", hash="hmac-sha256", pepper=b"salt")
    legacy = a_key(digest=old.digest(b"legacy"), algorithm=old.algorithm)
    replaced = a_key(replaced_at=NOW_US - 2 * DAY_US, retires_at=NOW_US + DAY_US)
    await admin.keys.add([legacy, replaced], actor=ANN)
    rehashing = Rehashing(sidecar.keys, "sha256", clock=Clock())
    await rehashing.find(Hasher((), [old]).candidates("legacy"))
    await rehashing.flush(sidecar.keys.rehash)
    retired = await retire_unused(sidecar.keys, replaced.id, DAY_US, NOW_US)
    assert retired.retires_at == NOW_US
    assert await admin.keys.find(Hasher().candidates("legacy")) is not None
    assert [row.action for row in await admin.audit.rows(AuditFilter(limit=2))] == ["retire", "rehash"]
    assert (await admin.audit.verify()).problem is None


async def test_a_sidecar_can_neither_issue_nor_change_a_key(admin: Store, sidecar: Store) -> None:
    key = a_key()
    await admin.keys.add([key], actor=ANN)
    with pytest.raises(NotWritten, match="administration role"):
        await sidecar.keys.add([a_key()], actor=ANN)
    for status in (KeyStatus.DISABLED, KeyStatus.REVOKED):
        with pytest.raises(NotWritten, match="administration role"):
            await set_status(sidecar.keys, key.id, status)
    with pytest.raises(NotWritten):
        async with sidecar.imports.intake(at=NOW_US, actor=ANN) as intake:
            await intake.begin()
            await intake.add(intake.batch([new_row(a_key())]))
    assert await admin.keys.get(key.id) == key
    assert (await admin.audit.verify()).problem is None


FORBIDDEN = (
    "UPDATE sidecar.api_key SET digest = decode(repeat('00', 32), 'hex') WHERE serial = 1",  # Without an audit row.
    "UPDATE sidecar.api_key SET scopes = '[\"*\"]'",
    "UPDATE sidecar.api_key SET expires_at = 9",
    "UPDATE sidecar.api_key SET retires_at = 9",
    "UPDATE sidecar.api_key SET serial = serial + 1000",
    "DELETE FROM sidecar.api_key",
    "TRUNCATE sidecar.api_key",
    "DELETE FROM sidecar.audit",
    "UPDATE sidecar.audit SET actor = 'nobody'",
    "INSERT INTO sidecar.audit VALUES (99, 0, '', '', 'issue', '', NULL, NULL, NULL, NULL)",
    "INSERT INTO sidecar.audit VALUES (0, 0, '', '', 'rehash', '', NULL, NULL, NULL, NULL)",  # Before the head.
    "INSERT INTO sidecar.audit SELECT 90 + i, 0, '', '', CASE i WHEN 9 THEN 'issue' ELSE 'rehash' END, '', NULL, NULL, "
    "NULL, NULL FROM generate_series(0, 9) AS i",
    # It would have the number of the next change, which would then be impossible.
    "INSERT INTO sidecar.audit SELECT id + 1, 0, '', '', 'rehash', '' FROM sidecar.audit_head",
    "UPDATE sidecar.audit_head SET id = 0",
    "UPDATE sidecar.generation SET value = 0",
    "UPDATE sidecar.schema_version SET version = 99",
    "SELECT * FROM sidecar.idempotency",
    "ALTER TABLE sidecar.api_key DISABLE TRIGGER api_key_guard",
    "CREATE TABLE sidecar.own (id INTEGER)",
    "SET session_replication_role = replica",
)


async def test_the_sidecars_role_cannot_change_keys_by_sql_either(
    server: PostgresqlServer, admin_url: str, admin: Store
) -> None:
    if not await admin.keys.list(KeyFilter(limit=1)):
        await admin.keys.add([a_key()], actor=ANN)
    told = {statement: refusal(server, statement, of_sidecars(admin_url)) for statement in FORBIDDEN}
    refused = re.compile(r"permission denied|must be owner|administration role")
    assert {statement: said for statement, said in told.items() if not refused.search(said)} == {}


def refusal(server: PostgresqlServer, statement: str, url: str) -> str:
    """What the server says; nothing where it did as it was told."""
    try:
        server.sql(statement, url=url)
    except AssertionError as error:
        return str(error)
    return ""


async def test_commands_that_change_keys_say_which_role_they_need(admin_url: str, admin: Store) -> None:
    key = a_key()
    await admin.keys.add([key], actor=ANN)
    done = run_cli("keys", "revoke", "--store", of_sidecars(admin_url), "--yes", key.id)
    assert done.exit_code == 1 and "administration role" in done.output


SERVED = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///replaced
scopes: {read: Read}
routes:
- GET /items/**: {scopes: [read], respond: {status: ok}}
"""


def test_serve_takes_the_sidecars_role_but_not_for_administration(admin_url: str, start_sidecar: StartSidecar) -> None:
    environ = {"SIDECAR_ADMIN_TOKEN": "a-token-that-is-long-enough-for-a-test"}
    with pytest.raises(AssertionError, match="the administration role"):
        start_sidecar(f"{SERVED}admin: 127.0.0.1:0\n", store=of_sidecars(admin_url), environ=environ)
    sidecar = start_sidecar(SERVED, store=of_sidecars(admin_url))
    key = Keys(sidecar.keys.config, admin_url).issue(scopes=("read",))
    assert sidecar.ask("GET", "/items/1", key=key).status == 200
    assert sidecar.stop() == 0
    assert "not written" not in "\n".join(sidecar.process.stderr.all())
    assert Keys(sidecar.keys.config, admin_url).told("show", key.id)["last_used_at"] is not None
