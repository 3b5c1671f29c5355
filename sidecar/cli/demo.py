"""`sidecar demo`: a small upstream, the sidecar in front of it, three keys, and requests to try."""

import asyncio
import http.client
import json
import secrets
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from aiohttp import web

from sidecar.app import running
from sidecar.cli.admin import new_token
from sidecar.cli.key_service import rules_of
from sidecar.cli.serve import run, stop_event
from sidecar.config.build.config import Config
from sidecar.config.build.policy import VARIABLE
from sidecar.config.fields import Address
from sidecar.config.load import load
from sidecar.core.apikey import Hasher
from sidecar.keys.lifecycle import Lifecycle
from sidecar.keys.ports import Actor
from sidecar.keys.validation import NewKey
from sidecar.runtime.tasks import SystemClock
from sidecar.store.store import SqliteStore

# The configuration, the keys and the requests of the demo.

CONFIG = """\
listen: 127.0.0.1:0
ops: 127.0.0.1:0
admin: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///replaced

keys:
  environments: {live: demo_}

scopes:
  streams:read: List and get streams
  streams:write: {description: Create and delete streams, includes: [streams:read]}
  reports:read: Get reports

quotas:
  reports: {limit: 2, per: hour, window: sliding, by: key}

routes:
  - GET /v1/status: {public: true}
  - GET /v1/streams/**: {scopes: [streams:read]}
  - POST|DELETE /v1/streams/**: {scopes: [streams:write]}
  - GET /v1/reports: {scopes: [reports:read], quotas: [reports]}
  - "* /v1/tenants/{tenant}/**": {tenant: tenant}

identity:
  headers: {X-Key-Id: "{key.id}", X-Tenant: "{key.tenant}", X-Scopes: "{key.scopes}"}

access_log: "off"
"""
_UNLOGGED = 'access_log: "off"'

PORTS = {"listen": 8080, "ops": 9090, "admin": 9091}
"""The port of each listener, unless something else uses it."""

KEYS = {
    "reader": ("acme", ("streams:read",)),
    "writer": ("acme", ("streams:write",)),
    "reporter": ("globex", ("reports:read",)),
}
"""The tenant and the scopes of each key, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A request and the expected response. `reason` is empty if the request is allowed."""

    method: str = "GET"
    path: str
    key: str = ""
    status: int
    reason: str = ""
    why: str


STEPS = (
    Step(path="/v1/status", status=200, why="the route is public"),
    Step(path="/v1/streams", status=401, reason="missing_credential", why="the route requires a key"),
    Step(path="/v1/streams", key="reader", status=200, why="the key has the scope streams:read"),
    Step(
        path="/v1/streams", key="mistyped", status=401, reason="invalid_key", why="the checksum reveals a mistyped key"
    ),
    Step(
        method="POST",
        path="/v1/streams",
        key="reader",
        status=403,
        reason="insufficient_scope",
        why="the key lacks streams:write",
    ),
    Step(method="POST", path="/v1/streams", key="writer", status=200, why="the key has the scope streams:write"),
    Step(path="/v1/streams/1", key="writer", status=200, why="streams:write includes streams:read"),
    Step(path="/v1/tenants/acme/users", key="reader", status=200, why="the key belongs to this tenant"),
    Step(
        path="/v1/tenants/globex/users",
        key="reader",
        status=403,
        reason="wrong_tenant",
        why="the key belongs to another tenant",
    ),
    Step(
        path="/internal", key="writer", status=403, reason="no_route", why="no route matches, so the request is denied"
    ),
    Step(
        path="/v1/streams/../status",
        key="writer",
        status=400,
        reason="ambiguous_target",
        why="the upstream might read this path differently than the routes",
    ),
    Step(path="/v1/reports", key="reporter", status=200, why="the first of two requests per hour"),
    Step(path="/v1/reports", key="reporter", status=200, why="the second of two requests per hour"),
    Step(path="/v1/reports", key="reporter", status=429, reason="quota_exceeded", why="the quota is used up"),
)


def mistyped(text: str) -> str:
    """Return the key with two neighbouring characters of its random part swapped, a common typing mistake."""
    at = next(at for at in range(len(text) - 10, 5, -1) if text[at] != text[at + 1])
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


@click.command("demo")
@click.option("--check", is_flag=True, help="Send the requests, print each result, and exit.")
def demo_command(check: bool) -> None:
    """Try the sidecar in front of a small upstream. Stop it with Ctrl-C.

    \b
    Example:
      sidecar demo
      sidecar demo --check

    With --check the demo sends the requests itself, and exits with 1 if a response is not as expected.
    """
    run(lambda _: _demo(check))


async def _demo(check: bool) -> None:
    stopping = stop_event()
    with tempfile.TemporaryDirectory(prefix="sidecar-demo-") as folder:
        async with _upstream() as upstream:
            token = new_token()
            config, keys = await _prepared(Path(folder), upstream, token, check=check)
            async with running(config) as app:
                addresses = {name: bound[0] for name, bound in app.listeners.items()}
                if check:
                    sys.exit(await asyncio.to_thread(_send_all, addresses["data"], keys))
                _print_introduction(addresses, keys, token)
                await stopping.wait()


@asynccontextmanager
async def _upstream() -> AsyncIterator[str]:
    """Run a service that responds with the identity headers it received. Yields its URL."""
    runner = web.ServerRunner(web.Server(_echo))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _echo(request: web.BaseRequest) -> web.StreamResponse:
    identity = {name: value for name, value in request.headers.items() if name.startswith("X-")}
    return web.json_response({"request": f"{request.method} {request.path}", "identity headers": identity})


async def _prepared(folder: Path, upstream: str, token: str, *, check: bool) -> tuple[Config, dict[str, str]]:
    file, database = folder / "demo.yaml", folder / "keys.db"
    file.write_text(CONFIG if check else CONFIG.replace(_UNLOGGED, "access_log: json"), encoding="utf-8")
    overrides = {"upstream": upstream, "store": f"sqlite://{database}", **({} if check else _ports())}
    config = load(str(file), overrides=overrides, environ={VARIABLE: token})
    rules, actor = rules_of(config), Actor(name="demo")
    store = await SqliteStore.open(str(database), create=True, clock=SystemClock(), timings=lambda *_: None)
    try:
        lifecycle = Lifecycle(store.keys, Hasher(), clock=SystemClock(), randbelow=secrets.randbelow)
        issued = {
            name: await lifecycle.issue(NewKey(name=name, tenant=tenant, scopes=scopes), rules, actor=actor)
            for name, (tenant, scopes) in KEYS.items()
        }
    finally:
        await store.close()
    return config, {name: key.secret.text for name, key in issued.items()}


def _ports() -> Mapping[str, str]:
    """The fixed port of each listener if it is free, so that addresses are the same at each start."""
    return {name: f"127.0.0.1:{port if _is_free(port) else 0}" for name, port in PORTS.items()}


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _print_introduction(addresses: Mapping[str, Address], keys: Mapping[str, str], token: str) -> None:
    click.echo("The sidecar runs in front of a small upstream. Three keys were issued:\n")
    for name, text in {**keys, "mistyped": mistyped(keys["reader"])}.items():
        meaning = ", ".join(KEYS[name][1]) if name in KEYS else "the reader's, with two characters swapped"
        click.echo(f"export {name.upper()}={text}   # {meaning}")
    click.echo("\nIn another terminal, paste these lines, and try:\n")
    for step in STEPS:
        click.echo(f"  {_curl(step, addresses['data'])}")
        click.echo(f"      {step.status}{f' {step.reason}' if step.reason else ''}: {step.why}\n")
    click.echo(f"Admin page (keys, usage, audit): http://{addresses['admin']}/  (API: /api/docs)")
    click.echo(f"  Sign in with this admin token: {token}\n")
    click.echo("Its access log follows: a line for each decision, as it happens.")
    click.echo(f"Metrics: curl http://{addresses['ops']}/metrics   Stop: Ctrl-C")


def _curl(step: Step, address: Address) -> str:
    arguments = ["curl -i"]
    if step.method != "GET":
        arguments.append(f"-X {step.method}")
    if ".." in step.path:
        arguments.append("--path-as-is")
    if step.key:
        arguments.append(f'-H "Authorization: Bearer ${step.key.upper()}"')
    return " ".join([*arguments, f"http://{address}{step.path}"])


def _presented(step: Step, keys: Mapping[str, str]) -> str:
    return mistyped(keys["reader"]) if step.key == "mistyped" else keys[step.key]


def _send_all(address: Address, keys: Mapping[str, str]) -> int:
    """Send every request in order and print a table. Returns the exit status."""
    failed = 0
    click.echo(f"{'request':<28} {'key':<9} {'status':<7} {'reason':<20} as expected")
    for step in STEPS:
        status, reason = _send(step, address, keys)
        as_expected = (status, reason) == (step.status, step.reason)
        failed += not as_expected
        request = f"{step.method} {step.path}"
        verdict = "yes" if as_expected else f"no: expected {step.status} {step.reason}"
        click.echo(f"{request:<28} {step.key or '-':<9} {status:<7} {reason or '-':<20} {verdict}")
    click.echo(f"{len(STEPS) - failed} of {len(STEPS)} responses as expected")
    return 1 if failed else 0


def _send(step: Step, address: Address, keys: Mapping[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {_presented(step, keys)}"} if step.key else {}
        connection.request(step.method, step.path, headers=headers)
        response = connection.getresponse()
        body = json.loads(response.read())
        return response.status, body.get("code", "")
    finally:
        connection.close()
