"""Where a benchmark takes place: a temporary folder, the upstream in it, and keys for whoever needs them."""

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import sidecar
from tests.bench.keys import fill_store, keys_of, make_keys, write_keys
from tests.bench.processes import LOAD_CORE, Process, Unavailable, running
from tests.harness.ports import free_port

USUAL_KEYS = 10_000
SMALL_ANSWER = '{"id":1,"name":"stream","state":"live"}'
FILES = {"64k": 64 * 1024, "10m": 10 * 1024 * 1024}

# The sink answers when it has the whole body: it hands the request, without its body, to a second server.
UPSTREAM = """
user root; daemon off; master_process off; worker_processes 1; pid {folder}/upstream.pid;
error_log {folder}/upstream.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; sendfile on; tcp_nopush on;
  client_max_body_size 0; client_body_buffer_size 256k; open_file_cache max=10;
  client_body_temp_path {folder}/upstream-body; proxy_temp_path {folder}/upstream-proxy;
  fastcgi_temp_path {folder}/upstream-f; uwsgi_temp_path {folder}/upstream-u; scgi_temp_path {folder}/upstream-s;
  default_type application/json;
  upstream inner {{ server unix:{folder}/inner.sock; keepalive 64; keepalive_requests 1000000000; }}
  server {{ listen unix:{folder}/inner.sock; location / {{ return 200 '{answer}'; }} }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ return 200 '{answer}'; }}
    location /v1/file/ {{ alias {folder}/files/; }}
    location /v1/sink {{
      proxy_pass http://inner; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass_request_body off;
      proxy_set_header Content-Length "";
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Everything that a peer needs to know of its surroundings."""

    folder: Path
    upstream: Process
    keys: Sequence[str] = field(repr=False)
    """Those that every peer knows."""
    python: str
    """The interpreter of the servers written in Python."""
    code: Path
    """A folder with a copy of the package, so that one version is measured even while someone works on it."""

    def store(self, count: int, owner: str) -> Path:
        """A SQLite store of the first `count` keys, as new; the usual one has revoked keys, too.

        `owner` has it to itself, unless it is a very large one.
        """
        filled = _store(self.folder, count)
        if count > USUAL_KEYS:
            return filled
        own = self.folder / f"{owner}.db"
        for leftover in self.folder.glob(f"{owner}.db*"):
            leftover.unlink()
        shutil.copy(filled, own)
        return own

    def keys_file(self) -> Path:
        """`keys`, one a line."""
        return write_keys(self.folder / "keys.txt", self.keys)


@contextlib.contextmanager
def site(folder: Path, *, python: str = sys.executable) -> Iterator[Site]:
    """Starts the upstream. Raises Unavailable."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        raise Unavailable("nginx is not installed, and the upstream is an nginx")
    (folder / "files").mkdir()
    for name, size in FILES.items():
        (folder / "files" / name).write_bytes(b"x" * size)
    code = folder / "code"
    shutil.copytree(Path(sidecar.__file__).parent, code / "sidecar", ignore=shutil.ignore_patterns("__pycache__"))
    port = free_port()
    conf = folder / "upstream.conf"
    conf.write_text(UPSTREAM.format(folder=folder, port=port, answer=SMALL_ANSWER))
    with running([nginx, "-c", str(conf)], port=port, core=LOAD_CORE, output=folder / "upstream.out") as upstream:
        yield Site(folder=folder, upstream=upstream, keys=keys_of("good", USUAL_KEYS), python=python, code=code)


@cache
def _store(folder: Path, count: int) -> Path:
    path = folder / f"keys-{count}.db"
    # Stores of another size are compared with each other, and have exactly the keys that they are named for.
    fill_store(path, make_keys(count), revoked=keys_of("revoked", USUAL_KEYS) if count == USUAL_KEYS else ())
    return path
