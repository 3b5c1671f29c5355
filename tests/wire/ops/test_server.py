"""The ops listener over a real socket."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from threading import Event

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from sidecar.ops.server import ops_app
from sidecar.telemetry.metrics import Metrics

Problems = list[str | Exception]


@pytest.fixture
def problems() -> Problems:
    return []


@pytest.fixture
async def client(problems: Problems) -> AsyncIterator[TestClient]:
    async def ready() -> Sequence[str]:
        for problem in problems:
            if isinstance(problem, Exception):
                raise problem
        return [str(problem) for problem in problems]

    metrics = Metrics()
    metrics.finished("GET /a", "GET", 200, seconds=0.1)
    app = ops_app(ready=ready, exposition=metrics.exposition, checks=("store", "config"))
    async with TestClient(TestServer(app)) as opened:
        yield opened


async def told(response: ClientResponse) -> tuple[int, str]:
    return response.status, await response.text()


async def test_alive_and_ready_are_ok(client: TestClient) -> None:
    assert await told(await client.get("/livez")) == (200, "ok\n")
    assert await told(await client.get("/readyz")) == (200, "ok\n")


async def test_problems_that_prevent_decisions_are_reported_and_it_stays_alive(
    client: TestClient, problems: Problems
) -> None:
    problems += ["store: locked", "upstream: gone"]
    assert await told(await client.get("/readyz")) == (503, "store: locked\nupstream: gone\n")
    assert (await client.get("/livez")).status == 200
    problems.clear()
    assert (await client.get("/readyz")).status == 200


async def test_verbose_lists_every_check(client: TestClient, problems: Problems) -> None:
    assert await told(await client.get("/readyz?verbose")) == (200, "store: ok\nconfig: ok\n")
    problems.append("store: locked")
    assert await told(await client.get("/readyz?verbose")) == (503, "store: locked\nconfig: ok\n")


async def test_a_remark_is_shown_on_request_and_does_not_affect_readiness() -> None:
    async def ready() -> Sequence[str]:
        return ()

    app = ops_app(
        ready=ready, exposition=Metrics().exposition, checks=("store", "config"), remarks=lambda: ["config: not taken"]
    )
    async with TestClient(TestServer(app)) as client:
        assert await told(await client.get("/readyz?verbose")) == (200, "config: not taken\nstore: ok\n")
        assert await told(await client.get("/readyz")) == (200, "ok\n")


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (OSError("secret path"), "readiness: OSError\n"),
        (TimeoutError(), "readiness: no answer within 2 s\n"),
    ],
)
async def test_a_check_that_fails_is_not_ready_and_keeps_its_message(
    client: TestClient,
    problems: Problems,
    failure: Exception,
    line: str,
) -> None:
    problems.append(failure)
    assert await told(await client.get("/readyz")) == (503, line)


async def test_metrics_are_what_prometheus_reads(client: TestClient) -> None:
    response = await client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(await response.text())}
    (sample,) = (one for one in families["sidecar_requests"].samples if one.name == "sidecar_requests_total")
    assert (sample.labels, sample.value) == ({"route": "GET /a", "method": "GET", "code": "200"}, 1)


async def test_metrics_come_in_the_format_asked_for(client: TestClient) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = await client.get("/metrics", headers={"Accept": accept})
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert (await response.text()).endswith("# EOF\n")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
async def test_head_is_answered_and_other_methods_are_not(client: TestClient, path: str) -> None:
    head = await client.head(path)
    assert await told(head) == (200, "")
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        response = await client.request(method, path)
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"


@pytest.mark.parametrize(("method", "path"), [("GET", "/livez"), ("GET", "/nothing"), ("POST", "/metrics")])
async def test_nothing_is_cached_and_no_version_is_revealed(client: TestClient, method: str, path: str) -> None:
    response = await client.request(method, path)
    assert response.headers["Cache-Control"] == "no-store"
    assert "Server" not in response.headers


@pytest.mark.parametrize("accepted", ["gzip", "deflate, GZip;q=0.5", "br, *", "gzip, *;q=0"])
async def test_metrics_are_compressed_for_clients_that_accept_it(client: TestClient, accepted: str) -> None:
    response = await client.get("/metrics", headers={"Accept-Encoding": accepted})
    assert response.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in response.headers["Vary"]
    assert "sidecar_requests_total" in await response.text()


@pytest.mark.parametrize("accepted", ["", "identity", "gzip;q=0", "gzip;q=0.000, *", "gzip;q=x", "br"])
async def test_metrics_are_not_compressed_for_others(client: TestClient, accepted: str) -> None:
    response = await client.get("/metrics", headers={"Accept-Encoding": accepted})
    assert "Content-Encoding" not in response.headers
    assert "sidecar_requests_total" in await response.text()


async def test_a_scrape_delays_no_request() -> None:
    async def ready() -> Sequence[str]:
        return []

    go_on = Event()

    def slow(_: str) -> tuple[bytes, str]:
        go_on.wait()
        return b"written", "text/plain"

    async with TestClient(TestServer(ops_app(ready=ready, exposition=slow))) as client:
        scrape = asyncio.ensure_future(client.get("/metrics"))
        assert await told(await client.get("/livez")) == (200, "ok\n")
        assert not scrape.done()
        go_on.set()
        assert await told(await scrape) == (200, "written")
