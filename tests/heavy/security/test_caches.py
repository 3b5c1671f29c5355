"""A real cache in front of the sidecar: nginx, told to keep every 200."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.harness.keys import IssuedKey
from tests.harness.ports import comes_to_listen, free_port
from tests.harness.processes import STOP_SECONDS
from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.tools import needed
from tests.harness.wire import Address, Connection, Response

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
ops: 127.0.0.1:0
keys: {environments: {live: hv_live_}, from: [{header: X-Api-Key}, {query: key}]}
routes:
  - GET /keyed/**: {}
  - GET /same/**: {cache: shared}
  - GET /open/**: {public: true}
"""
NGINX = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_cache_path {folder}/cache keys_zone=kept:1m;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{behind};
            proxy_cache kept;
            proxy_cache_valid 200 10m;
        }}
    }}
}}
"""


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


@pytest.fixture(scope="module")
def key(sidecar: Sidecar) -> IssuedKey:
    return sidecar.keys.issue()


@pytest.fixture(scope="module")
def cache(sidecar: Sidecar, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, behind=sidecar.data[1]), encoding="utf-8")
    command = [needed("nginx"), "-p", str(folder), "-e", str(folder / "start.log"), "-c", str(config)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert comes_to_listen(process, port)
        yield ("127.0.0.1", port)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def ask(cache: Address, target: str, key: IssuedKey | None = None) -> Response:
    with Connection(cache) as connection:
        return connection.ask("GET", target, [] if key is None else [("X-Api-Key", key.text)])


SAYING = {
    "nothing": b"",
    "public": b"Cache-Control: public, max-age=600\r\n",
    "how long": b"Cache-Control: max-age=600\r\n",
    "when": b"Expires: Thu, 31 Dec 2099 23:59:59 GMT\r\n",
}


@pytest.mark.parametrize("saying", SAYING)
def test_a_response_for_a_key_is_served_to_no_other_client(
    cache: Address, upstream: Upstream, key: IssuedKey, saying: str
) -> None:
    upstream.plan(b"HTTP/1.1 200 OK\r\n" + SAYING[saying] + b"Content-Length: 6\r\n\r\nsecret")
    target = "/keyed/" + saying.replace(" ", "-")
    assert ask(cache, target, key).body == b"secret"
    assert ask(cache, target).status == 401
    assert len(upstream.requests()) == 1


def test_a_response_to_a_key_in_the_query_is_not_kept(cache: Address, upstream: Upstream, key: IssuedKey) -> None:
    for _ in range(2):
        upstream.plan(b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=600\r\nContent-Length: 0\r\n\r\n")
        assert ask(cache, f"/open/x?key={key.text}").status == 200
    assert len(upstream.requests()) == 2


@pytest.mark.parametrize("target", ["/same/x", "/open/y"])
def test_responses_that_may_be_shared_are(cache: Address, upstream: Upstream, key: IssuedKey, target: str) -> None:
    upstream.plan(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nknown")
    assert [ask(cache, target, key).body, ask(cache, target).body] == [b"known", b"known"]
    assert len(upstream.requests()) == 1
