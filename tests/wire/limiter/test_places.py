"""Redis behind TLS, behind sentinels, or in a Cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.core.model import Taken
from sidecar.limiter.redis.limiter import RedisLimiter
from tests.harness.redis import RedisServer
from tests.harness.waiting import eventually, until
from tests.unit.limiter.contract import NOON, bucket
from tests.wire.limiter.clients import redis_limiter
from tests.wire.proxy.certificates import Authority

PATIENCE_SECONDS = 60


async def take(limiter: RedisLimiter) -> Taken:
    return await limiter.take([bucket(90), bucket(50, name="other", subject="key-2")], NOON)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls_port(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    certificate, key = authority.issue("redis")
    with RedisServer(tmp_path_factory.mktemp("redis")) as plain:
        port = plain.port
    options = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    options += ["--tls-ca-cert-file", str(authority.certificate), "--tls-auth-clients", "no"]
    with RedisServer(tmp_path_factory.mktemp("tls"), *options):
        yield port


async def test_a_server_behind_tls_is_trusted_by_the_given_authority(authority: Authority, tls_port: int) -> None:
    url = f"rediss://localhost:{tls_port}/1"
    async with redis_limiter(url, ca=str(authority.certificate)) as (limiter, statistics):
        assert [state.remaining for state in (await take(limiter)).states] == [89, 49]
        assert not statistics.problem


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_server_with_an_untrusted_certificate_or_another_name_is_not_queried(
    authority: Authority, tls_port: int, host: str
) -> None:
    ca = "" if host == "localhost" else str(authority.certificate)
    async with redis_limiter(f"rediss://:secret@{host}:{tls_port}", ca=ca, outage="open") as (limiter, statistics):
        assert (await take(limiter)).states == ()
        assert "cannot be asked (connection)" in statistics.problem


async def test_sentinels_report_the_current_server_after_a_failover(tmp_path: Path) -> None:
    for name in ("one", "two", "sentinel"):
        (tmp_path / name).mkdir()
    with RedisServer(tmp_path / "one") as one, RedisServer(tmp_path / "two") as two:
        config = tmp_path / "sentinel" / "sentinel.conf"
        config.write_text(f"sentinel monitor main 127.0.0.1 {one.port} 1\n", encoding="utf-8")
        with RedisServer(tmp_path / "sentinel", program=(str(config), "--sentinel")) as sentinel:
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
            async with redis_limiter(url, outage="open") as (limiter, statistics):
                assert (await take(limiter)).states[0].remaining == 89
                two.call("SET", "which", "two")
                # The server becomes a replica, and the sentinels report another one.
                sentinel.call("SENTINEL", "REMOVE", "main")
                sentinel.call("SENTINEL", "MONITOR", "main", "127.0.0.1", str(two.port), "1")
                one.call("REPLICAOF", "127.0.0.1", str(two.port))
                assert (await take(limiter)).states == () and statistics.errors["readonly"] == 1
                await eventually(lambda: statistics.breaker == "closed", within_seconds=PATIENCE_SECONDS)
                assert (await take(limiter)).states[0].remaining == 89


async def test_all_counts_of_a_cluster_are_in_one_slot_whose_node_is_asked(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    with RedisServer(tmp_path / "one", *options) as one, RedisServer(tmp_path / "two", *options) as two:
        one.call("CLUSTER", "ADDSLOTSRANGE", "0", "8191")
        two.call("CLUSTER", "ADDSLOTSRANGE", "8192", "16383")
        one.call("CLUSTER", "MEET", "127.0.0.1", str(two.port))
        until(lambda: all(b"cluster_state:ok" in node.call("CLUSTER", "INFO") for node in (one, two)))
        slot = int(one.call("CLUSTER", "KEYSLOT", "{here}")[1:])
        there, other = (one, two) if slot < 8192 else (two, one)
        url = f"redis+cluster://127.0.0.1:{other.port}"
        async with redis_limiter(url, namespace="here", outage="open") as (limiter, statistics):
            assert [state.remaining for state in (await take(limiter)).states] == [89, 49]
            assert there.call("CLUSTER", "COUNTKEYSINSLOT", str(slot)) == b":3\r\n"
            # The slot moves with its counts, and the limiter follows.
            old, new = (node.call("CLUSTER", "MYID").split()[1].decode() for node in (there, other))
            there.call("FLUSHALL")
            assert other.call("CLUSTER", "SETSLOT", str(slot), "IMPORTING", old) == b"+OK\r\n"
            assert there.call("CLUSTER", "SETSLOT", str(slot), "MIGRATING", new) == b"+OK\r\n"
            for node in (other, there):
                assert node.call("CLUSTER", "SETSLOT", str(slot), "NODE", new) == b"+OK\r\n"
            assert (await take(limiter)).states == () and statistics.errors["cluster"] == 1
            await eventually(lambda: statistics.breaker == "closed", within_seconds=PATIENCE_SECONDS)
            assert (await take(limiter)).states[0].remaining == 89
