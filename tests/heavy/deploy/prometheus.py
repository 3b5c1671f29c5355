"""A real Prometheus that scrapes what a test gives it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any
from urllib.parse import urlencode

import yaml

from tests.harness.ports import free_port
from tests.harness.processes import STOP_SECONDS, Lines
from tests.harness.tools import needed
from tests.harness.wire import Address, Connection

SCRAPE_SECONDS = 1


class Prometheus:
    """Asks it over its API."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query. Raises AssertionError for one that Prometheus does not understand."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("targets")["activeTargets"]
        return found

    def _get(self, path: str, **parameters: str) -> Any:
        with Connection(self._address) as connection:
            response = connection.ask("GET", f"/api/v1/{path}?{urlencode(parameters)}")
        assert response.status == 200, response.body
        return response.json()["data"]


@contextmanager
def running_prometheus(folder: Path, targets: list[Address], rules: Path) -> Iterator[Prometheus]:
    """Scrapes `targets` each second as job `sidecar`, with `rules`; its data lie in `folder`."""
    address = ("127.0.0.1", free_port())
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(_config(targets, rules)), encoding="utf-8")
    process = Popen(
        [
            needed("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address[0]}:{address[1]}",
        ],
        stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    assert process.stderr
    lines = Lines(process.stderr)
    try:
        assert lines.wait_for(lambda line: "Server is ready" in line), lines.all()
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
        lines.join()


def _config(targets: list[Address], rules: Path) -> dict[str, Any]:
    every = f"{SCRAPE_SECONDS}s"
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {"job_name": "sidecar", "static_configs": [{"targets": [f"{host}:{port}" for host, port in targets]}]}
        ],
    }
