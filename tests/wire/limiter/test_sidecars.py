"""Sidecars that count in one Redis, over sockets."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.harness.keys import IssuedKey, run_cli
from tests.harness.redis import RedisServer
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import until
from tests.harness.wire import Connection, request_bytes
from tests.wire.forward_auth.asking import start_decider

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1  # another one is given at the start
store: sqlite:unused.db
limiter:
  {{url: "redis://:${{REDIS_PASSWORD}}@127.0.0.1:{port}", namespace: "{namespace}", replicas: 2, timeout: 30s{more}}}
keys: {{environments: {{live: hv_live_}}, failures: {{limit: 3, per: 10m}}}}
scopes: {{items:read: Read}}
quotas:
  ten_minutes: {{limit: 100, per: 600s, window: sliding, by: key}}
  month: {{limit: 100, per: month, by: key}}
  bucket: {{limit: 100, per: 90d, window: bucket, by: key}}
  wide: {{limit: 1000, per: month, by: tenant}}
routes:
  - GET /ten_minutes: {{scopes: [items:read], quotas: [wide, ten_minutes]}}
  - GET /month: {{scopes: [items:read], quotas: [wide, month]}}
  - GET /bucket: {{scopes: [items:read], quotas: [wide, bucket]}}
  - GET /free: {{scopes: [items:read]}}
  - GET /public: {{public: true, quotas: [month]}}
"""
PASSWORD = "hunter2-very-secret"
CLIENTS, EACH = 8, 30
OPERATED = "workers: 2\ndecision: 127.0.0.1:0\ntrusted_proxies: [127.0.0.1]\n"


@pytest.fixture(scope="module")
def password_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), "--requirepass", PASSWORD) as server:
        yield server


def config_of(server: RedisServer, namespace: str, more: str = "") -> str:
    return CONFIG.format(port=server.port, namespace=namespace, more=more)


@pytest.fixture(scope="module")
def sidecars(
    password_server: RedisServer, start_shared_sidecar: StartSidecar, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Sidecar, Sidecar]:
    """Two on one store, which count together."""
    secret = tmp_path_factory.mktemp("secret") / "password"
    secret.write_text(f"{PASSWORD}\n", encoding="utf-8")
    config, environ = config_of(password_server, "two"), {"REDIS_PASSWORD_FILE": str(secret)}
    first = start_shared_sidecar(config, environ=environ)
    return first, start_shared_sidecar(config, environ=environ, store=first.keys.store)


def statuses(sidecar: Sidecar, target: str, key: IssuedKey) -> list[int]:
    with sidecar.connect() as connection:
        headers = [("Authorization", f"Bearer {key.text}")]
        return [connection.ask("GET", target, headers).status for _ in range(EACH)]


@pytest.mark.requirement("R3.3", "S7.1")
@pytest.mark.parametrize("target", ["/ten_minutes", "/month", "/bucket"])
def test_eight_clients_of_two_processes_get_exactly_the_limit(sidecars: tuple[Sidecar, Sidecar], target: str) -> None:
    key = sidecars[0].keys.issue(scopes=("items:read",), tenant=f"tenant-{target.strip('/')}")
    with ThreadPoolExecutor(CLIENTS) as clients:
        asked = [clients.submit(statuses, sidecars[i % 2], target, key) for i in range(CLIENTS)]
        found = [status for one in asked for status in one.result()]
    assert (found.count(200), found.count(429)) == (100, CLIENTS * EACH - 100)
    refused = sidecars[0].ask("GET", target, key=key)
    assert refused.status == 429 and int(refused.header("Retry-After")) > 0
    # The refused request took nothing, not even from the wider quota.
    assert '"wide";r=900' in refused.header("RateLimit")
    assert all(sidecar.metric('sidecar_limiter_fallback_total{decision="allowed"}') == 0 for sidecar in sidecars)


def test_what_is_left_is_reported_by_the_other_sidecar_too(sidecars: tuple[Sidecar, Sidecar]) -> None:
    key = sidecars[0].keys.issue(scopes=("items:read",), tenant="shown")
    told = sidecars[0].ask("GET", "/month", key=key)
    assert (told.header("X-RateLimit-Limit"), told.header("X-RateLimit-Remaining")) == ("100", "99")
    told = sidecars[1].ask("GET", "/month", key=key)
    assert told.header("X-RateLimit-Remaining") == "98"
    config, store = str(sidecars[0].keys.config), sidecars[0].keys.url
    environ = {"SIDECAR_STORE": store, "REDIS_PASSWORD": PASSWORD}
    explained = run_cli("explain", "-c", config, "GET", "/month", "--key", key.id, environ=environ)
    assert "98 of 100" in explained.output


def test_both_paths_agree_if_a_route_has_no_quota(sidecars: tuple[Sidecar, Sidecar]) -> None:
    key = sidecars[0].keys.issue(scopes=("items:read",))
    with sidecars[0].connect() as connection:
        headers = [("Authorization", f"Bearer {key.text}")]
        found = [
            connection.ask("GET", target, headers).status for target in ("/free", "/month", "/free", "/none", "/public")
        ]
    assert found == [200, 200, 200, 403, 200]


@pytest.mark.requirement("R3.1")
def test_wrong_keys_are_counted_by_each_sidecar_and_never_in_redis(
    password_server: RedisServer, start_sidecar: StartSidecar
) -> None:
    sidecar = start_sidecar(config_of(password_server, "failing"), environ={"REDIS_PASSWORD": PASSWORD})
    found = [sidecar.ask("GET", "/month", key=f"hv_live_{'a' * 43}").status for _ in range(5)]
    assert found == [401, 401, 401, 429, 429]
    assert sidecar.metric("sidecar_limiter_duration_seconds_count") == 0


@pytest.mark.requirement("R3.1")
@pytest.mark.parametrize(
    ("more", "found"), [("", [200] * 50 + [429] * 2), (", outage: open", [200] * 52), (", outage: closed", [503] * 52)]
)
def test_without_redis_each_sidecar_starts_and_decides_as_configured(
    start_sidecar: StartSidecar, tmp_path: Path, more: str, found: list[int]
) -> None:
    away = RedisServer(tmp_path, port=1)
    sidecar = start_sidecar(config_of(away, "away", more), environ={"REDIS_PASSWORD": PASSWORD})
    key = sidecar.keys.issue(scopes=("items:read",))
    with sidecar.connect() as connection:
        headers = [("Authorization", f"Bearer {key.text}")]
        responses = [connection.ask("GET", "/month", headers) for _ in range(52)]
    assert [response.status for response in responses] == found
    assert found[0] != 503 or responses[0].json()["code"] == "limiter_unavailable"
    with Connection(sidecar.ops) as ops:
        ready = ops.ask("GET", "/readyz?verbose")
    assert ready.status == 200 and "limiter: redis://127.0.0.1:1 cannot be asked (connection)" in ready.body.decode()
    assert sidecar.metric('sidecar_limiter_errors_total{cause="connection"}') >= 1
    assert PASSWORD not in ready.body.decode() + json.dumps(sidecar.process.stderr.all())


@pytest.mark.requirement("R3.1")
def test_without_redis_workers_and_forward_auth_have_one_share_together(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    config = config_of(RedisServer(tmp_path, port=1), "away") + OPERATED
    start = partial(start_sidecar, environ={"REDIS_PASSWORD": PASSWORD})
    decider = start_decider(start, config, {"Kr": "items:read"})
    statuses = [decider.sidecar.ask("GET", "/month", key=decider.keys["Kr"]).status for _ in range(20)]
    statuses += [decider.ask("traefik", "GET", "/month", key="Kr").status for _ in range(20)]
    statuses += [decider.sidecar.ask("GET", "/month", key=decider.keys["Kr"]).status for _ in range(20)]
    assert statuses == [200] * 50 + [429] * 10


@pytest.mark.requirement("R3.1")
def test_readiness_tells_of_a_redis_that_only_workers_have_asked(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--requirepass", PASSWORD) as server:
        config = config_of(server, "told").replace("timeout: 30s", "timeout: 1s") + "workers: 2\n"
        sidecar = start_sidecar(config, environ={"REDIS_PASSWORD": PASSWORD})
        key = sidecar.keys.issue(scopes=("items:read",))

        def told() -> bool:
            sidecar.ask("GET", "/month", key=key)
            with Connection(sidecar.ops) as ops:
                return "limiter: redis://" in ops.ask("GET", "/readyz?verbose").body.decode()

        assert not told()
        with server.paused():
            until(told)
        until(lambda: not told())


@pytest.mark.requirement("R1.3", "R3.1")
def test_a_client_that_leaves_while_redis_is_asked_is_counted_once(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--requirepass", PASSWORD) as server:
        sidecar = start_sidecar(config_of(server, "leaving"), environ={"REDIS_PASSWORD": PASSWORD})
        key = sidecar.keys.issue(scopes=("items:read",))
        headers = [("Authorization", f"Bearer {key.text}")]
        with sidecar.connect() as connection:
            # The second one is known by its bytes.
            assert [connection.ask("GET", "/month", headers).status for _ in range(2)] == [200, 200]
            with server.paused():
                connection.send(request_bytes("GET", "/month", headers))
                until(lambda: sidecar.metric("sidecar_in_flight") == 1)
                connection.close()
                until(lambda: sidecar.metric("sidecar_in_flight") == 0)
        assert sidecar.metric('sidecar_requests_total{code="499",method="GET",route="(none)"}') == 1
        assert sidecar.ask("GET", "/month", key=key).header("X-RateLimit-Remaining") in ("96", "97")


@pytest.mark.requirement("R3.1")
def test_no_request_fails_while_redis_is_paused_killed_and_back(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--requirepass", PASSWORD) as server:
        config = config_of(server, "killed").replace("timeout: 30s", "timeout: 1s")
        sidecar = start_sidecar(config, environ={"REDIS_PASSWORD": PASSWORD})
        key = sidecar.keys.issue(scopes=("items:read",))

        def remaining() -> int:
            response = sidecar.ask("GET", "/month", key=key)
            assert response.status == 200
            return int(response.header("X-RateLimit-Remaining"))

        assert remaining() == 99
        with server.paused():
            assert [remaining() for _ in range(5)] == [49, 48, 47, 46, 45]
        server.kill()
        assert [remaining() for _ in range(3)][-1] < 50
        server.start()
        until(lambda: sidecar.metric('sidecar_limiter_breaker_state{state="closed"}') == 1)
        assert remaining() == 99  # This Redis keeps nothing across restarts.
