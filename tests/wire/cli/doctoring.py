"""Installations for `sidecar doctor`, and its report."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.harness.keys import Keys, run_cli
from tests.harness.running import Sidecar

PEPPER = "3q2+7w9Xv1kPzL0aTg5yRb8uMc4nHd6sJfEiWoQx"
CONFIG = """
listen: 127.0.0.1:0
ops: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
limits: {connections: 500}
keys: {environments: {live: acme_}, max_age: 90d}
routes: [GET /v1/**: {}]
"""


class Report:
    """What `sidecar doctor --json` said."""

    def __init__(self, status: int, printed: dict[str, Any]) -> None:
        self.status, self.printed = status, printed
        self._found = {f"{one['group']}: {one['check']}": one for one in printed["findings"]}

    def __getitem__(self, name: str) -> tuple[str, str]:
        """Severity and what was found, by `group: check`."""
        return self._found[name]["severity"], self._found[name]["saw"]

    def do(self, name: str) -> str:
        advice: str = self._found[name]["do"]
        return advice

    def not_ok(self) -> dict[str, str]:
        return {name: one["severity"] for name, one in self._found.items() if one["severity"] != "ok"}


def examined(config: Path, *arguments: str, **environ: str) -> Report:
    done = run_cli("doctor", "-c", str(config), "--json", *arguments, environ=environ)
    return Report(done.exit_code, json.loads(done.stdout))


def examined_running(sidecar: Sidecar, upstream_url: str, **environ: str) -> Report:
    """Examine a running sidecar by the addresses that it listens on."""
    addresses = {
        "SIDECAR_LISTEN": f"127.0.0.1:{sidecar.data[1]}",
        "SIDECAR_OPS": f"127.0.0.1:{sidecar.ops[1]}",
        "SIDECAR_STORE": sidecar.keys.url,
        "SIDECAR_UPSTREAM": upstream_url,
    }
    return examined(sidecar.keys.config, **{**addresses, **environ})


class Place:
    """A configuration and its store, without a running sidecar."""

    def __init__(self, folder: Path, config: str = CONFIG) -> None:
        self.config, self.store = folder / "sidecar.yaml", folder / "keys.db"
        self.config.write_text(config.replace("sqlite:unused.db", f"sqlite://{self.store}"), encoding="utf-8")
        self.keys = Keys(self.config, self.store)

    def change(self, sql: str) -> None:
        with closing(sqlite3.connect(self.store)) as connection, connection:
            connection.execute(sql)
