"""`sidecar explain` and `sidecar doctor`: why a request is refused, and what is wrong with an installation."""

import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import click

from sidecar.admin.api.serializers import explanation_as_json
from sidecar.app import make_gate
from sidecar.cli.key_service import hasher_of_environ, line_of_stdin, open_store, url_to_read
from sidecar.cli.options import Failure, config_option, key_name, load_or_exit, reader_of, reported, seconds, shortened
from sidecar.cli.output import findings_as_json, findings_as_text
from sidecar.config.build.config import Config
from sidecar.config.engines import LimiterSettings
from sidecar.config.errors import ConfigError
from sidecar.core.apikey import Secret
from sidecar.doctor.findings import Finding, Named, Severity
from sidecar.doctor.run import Examination, examine
from sidecar.gate.explain import Explanation, Question, explain
from sidecar.gate.gate import Gate
from sidecar.keys.cache import KeyFinder
from sidecar.keys.lifecycle import Lifecycle
from sidecar.limiter.memory import MemoryLimiter
from sidecar.limiter.port import Limiter
from sidecar.limiter.remote import RemoteStatistics
from sidecar.runtime.engines import shared_limiter
from sidecar.runtime.tasks import SystemClock

_WIDTH = 14
_DETAILS = {"or read as", "scopes held", "missing", "used up", "header"}
"""Labels of lines that belong to the line before them; they are indented."""


@click.command("explain")
@config_option
@click.argument("method")
@click.argument("target")
@click.option(
    "--key", "name", callback=key_name, metavar="ID", help="Key id or prefix, or - to read the API key from stdin."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as the admin API does.")
@click.option("--store", metavar="URL", help="Use this key store instead of the configured one.")
def explain_command(
    config_path: str, method: str, target: str, name: str | None, as_json: bool, store: str | None
) -> None:
    """Show what the sidecar would do with a request, and why. Uses up no quota.

    TARGET is the path and query as a client sends them, such as /v1/streams/7?page=2. It is not a whole URL. The text
    on stdin is presented unchanged, including quotes around a key, so that the cause of a refusal can be named.

    \b
    Example:
      sidecar explain -c sidecar.yaml GET /v1/streams/7 --key hv_live_3fTq
      echo "$KEY" | sidecar explain -c sidecar.yaml DELETE /v1/streams/7 --key -
    """
    config = load_or_exit(config_path, {"store": store})
    with reported():
        explanation = asyncio.run(_explain(config, method, target, name))
    if as_json:
        click.echo(json.dumps(explanation_as_json(explanation), indent=2))
    else:
        click.echo("\n".join(_line(*line) for line in explanation.lines))


async def _explain(config: Config, method: str, target: str, name: str | None) -> Explanation:
    memory = MemoryLimiter(max_entries=config.limiter.entries)
    question = Question(method=method, target=target)
    if name is not None:
        question = await _with_key(question, config, memory, name)
    hasher = hasher_of_environ(config)

    def gate_of(keys: KeyFinder, limiter: Limiter) -> Gate:
        return make_gate(config, keys, limiter, hasher)

    async with _quotas(config.limiter, memory) as limiter:
        return await explain(question, config, gate_of, limiter, randbelow=secrets.randbelow)


@asynccontextmanager
async def _quotas(settings: LimiterSettings, memory: MemoryLimiter) -> AsyncIterator[Limiter]:
    """Where the running sidecars count."""
    if isinstance(settings.url, str):
        yield memory
        return
    shared = shared_limiter(settings, settings.url, memory, RemoteStatistics())
    async with shared.running():
        yield shared


async def _with_key(question: Question, config: Config, limiter: MemoryLimiter, name: str) -> Question:
    """Return the question with the key that `name` identifies: by id, by prefix, or `-` for the API key on stdin."""
    presented = line_of_stdin().strip() if name == "-" else None
    async with open_store(url_to_read(config)) as store:
        limiter.restore(await store.quotas.load(most=limiter.max_entries), time.time())
        keys = Lifecycle(store.keys, hasher_of_environ(config), clock=SystemClock(), randbelow=secrets.randbelow)
        key = await (keys.find_by(name) if presented is None else keys.find_by_secret(presented))
    if presented is None and key is None:
        raise Failure(f"no key {shortened(name)}; see `sidecar keys list`")
    secret = None if presented is None else Secret(text=presented)
    return replace(question, key=key, secret=secret)


def _line(label: str, text: str) -> str:
    indent = "  " if label in _DETAILS else ""
    return f"{indent + label:<{_WIDTH}}{text}"


def _configured(path: str, *, as_json: bool) -> Config:
    """Read the configuration. If it is wrong, print every problem to stderr, as JSON to stdout, too; exit with 2."""
    try:
        return reader_of(path, {})()
    except ConfigError as error:
        if as_json:
            findings = [Finding(severity=Severity.PROBLEM, saw=str(problem)) for problem in error.problems]
            named = [Named(group="Configuration", check="file", finding=finding) for finding in findings]
            click.echo(json.dumps(findings_as_json(path, named), indent=2))
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(2)


@click.command("doctor")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--deep", is_flag=True, help="Verify the whole audit trail, however long it is.")
@click.option(
    "--grace", callback=seconds, metavar="TIME", help="Time that the platform leaves after SIGTERM, such as 30s."
)
@click.pass_context
def doctor_command(context: click.Context, config_path: str, as_json: bool, deep: bool, grace: float | None) -> None:
    """Check the installation and suggest fixes.

    Each finding says what was found, why it matters, and what to do.

    Run it where the sidecar runs, as the same user and with the same SIDECAR_* variables. It changes nothing and prints
    no secrets. It connects to the upstream, sends it HEAD /, tries its port on this host's other addresses, queries the
    ops listener, and measures the store's latency. Exits with 0 if nothing is worse than a warning, with 1 if there are
    problems, with 2 if the configuration is wrong.

    \b
    Example:
      sidecar doctor -c /etc/sidecar/sidecar.yaml
      sidecar doctor -c sidecar.yaml --json | jq '.findings[] | select(.severity != "ok")'
    """
    examination = Examination(
        config=_configured(config_path, as_json=as_json),
        environ=os.environ,
        clock=SystemClock(),
        open_store=open_store,
        grace_seconds=grace,
        deep=deep,
    )
    found = asyncio.run(examine(examination))
    text = (
        json.dumps(findings_as_json(config_path, found), indent=2) if as_json else findings_as_text(config_path, found)
    )
    click.echo(text)
    if any(one.finding.severity is Severity.PROBLEM for one in found):
        context.exit(1)
