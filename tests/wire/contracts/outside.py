"""What users of the sidecar rely on, read from outside: each contract as plain data, without its English."""

import sqlite3
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sidecar.cli.main import main
from tests.harness.processes import ROOT
from tests.harness.running import Sidecar
from tests.harness.wire import Connection

TOKEN = "contract-token-0123456789abcdef"
CONFIG = f"""\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
limiter: redis://127.0.0.1:1
admin:
  listen: 127.0.0.1:0
  tokens: [{{name: ops, hash: 'sha256:{sha256(TOKEN.encode()).hexdigest()}', rights: write}}]
decision: {{listen: 127.0.0.1:0}}
keys: {{environments: {{live: hv_live_}}, failures: {{limit: 3, per: minute}}}}
scopes: {{read: Read}}
quotas: {{few: {{limit: 1, per: hour, by: key}}}}
usage: {{unusual: {{new_network: true}}}}
plans: {{basic: {{few: 1}}}}
access_log: {{query: redacted, sample_successes: 0.999999}}
tracing: {{endpoint: http://127.0.0.1:9}}
trusted_proxies: [127.0.0.1/32]
routes:
- GET /observed/**: {{mode: observe}}
- GET /public/**: {{public: true}}
- GET /items/**: {{scopes: [read], quotas: [few]}}
"""
_PROSE = frozenset({"description", "summary", "title", "help", "short_help", "epilog", "message", "examples", "about"})
_CLOSED = frozenset({"cause", "kind", "limit", "result", "turn"})
"""Labels with few values, which are also a contract."""
_PROCESS = ("python_", "process_")


def without_prose(data: Any) -> Any:
    """Names, types and shapes; text for people may change."""
    if isinstance(data, dict):
        # A field may also be called `description`: its value is then not text.
        return {k: without_prose(v) for k, v in data.items() if k not in _PROSE or not isinstance(v, str | None)}
    return [without_prose(item) for item in data] if isinstance(data, list | tuple) else data


def inlined(document: dict[str, Any]) -> Any:
    """The document with every `$ref` resolved: names of schemas are also text for people."""

    def put(data: Any, within: tuple[str, ...]) -> Any:
        if isinstance(data, list):
            return [put(item, within) for item in data]
        if not isinstance(data, dict):
            return data
        if (ref := data.get("$ref")) is None:
            return {name: put(value, within) for name, value in data.items()}
        if ref in within:
            return {"recursive": within[::-1].index(ref)}
        found: Any = document
        for part in ref.removeprefix("#/").split("/"):
            found = found[part]
        return put(found, (*within, ref))

    return put({name: value for name, value in document.items() if name != "components"}, ())


def commands() -> Any:
    """Every command with its arguments and options, as click knows them."""

    def one(command: click.Command) -> dict[str, Any]:
        context = click.Context(command, info_name="sidecar")
        told: dict[str, Any] = {"params": [_option(parameter, context) for parameter in command.params]}
        if isinstance(command, click.Group):
            names = command.list_commands(context)
            told["commands"] = {name: one(found) for name in names if (found := command.get_command(context, name))}
        return told

    return one(main)


def _option(parameter: click.Parameter, context: click.Context) -> dict[str, Any]:
    told = parameter.to_info_dict()
    choices = list(getattr(parameter.type, "choices", ()))
    return {
        "opts": [*parameter.opts, *parameter.secondary_opts],
        "required": parameter.required,
        "multiple": parameter.multiple,
        "flag": told.get("is_flag", False),
        "choices": [str(choice) for choice in choices],
        "default": str(parameter.get_default(context)),
    }


def metrics(sidecar: Sidecar) -> dict[str, Any]:
    """Name to type and labels, of a sidecar after all kinds of requests."""
    families: dict[str, Any] = {}
    for family in text_string_to_metric_families(sidecar.metrics()):
        if not family.name.startswith(_PROCESS):
            labels = sorted({label for sample in family.samples for label in sample.labels})
            closed = {name: sorted({sample.labels[name] for sample in family.samples}) for name in _CLOSED & {*labels}}
            families[family.name] = {"type": family.type, "labels": labels, **closed}
    return families


def schema_of(store: Path) -> dict[str, list[str]]:
    """Table to columns with their types."""
    with sqlite3.connect(store) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        tables = {name: connection.execute(f"PRAGMA table_info({name})").fetchall() for name in sorted(names)}
    connection.close()
    return {name: [f"{row[1]} {row[2]}" for row in rows] for name, rows in tables.items() if "sqlite_" not in name}


def yaml_files() -> dict[str, Any]:
    """The content of the files that users copy, without comments and alert texts."""
    files = [ROOT / "config.example.yaml", *sorted((ROOT / "deploy").rglob("*.yaml"))]
    return {str(file.relative_to(ROOT)): without_prose(list(_documents(file))) for file in files}


def _documents(file: Path) -> Iterable[Any]:
    return yaml.load_all(file.read_text(encoding="utf-8"), Loader=_Plain)  # a safe loader


class _Plain(yaml.SafeLoader):
    """Dates stay text."""


_Plain.yaml_implicit_resolvers = {
    first: [(tag, found) for tag, found in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def listener(sidecar: Sidecar, name: str) -> Connection:
    line = sidecar.process.stderr.wait_for(lambda line: f"{name} listener on" in line)
    assert line is not None, sidecar.process.stderr.all()
    host, _, port = line.rpartition(" ")[2].rpartition(":")
    return Connection((host, int(port)))
