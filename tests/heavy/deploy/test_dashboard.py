"""The dashboard and the rules against a real Prometheus that scrapes sidecars under load."""

import json
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.processes import ROOT
from tests.harness.running import Sidecar, StartSidecar
from tests.heavy.deploy.prometheus import Prometheus, running_prometheus
from tests.heavy.deploy.test_rules import RULES

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
keys: {environments: {live: acme_}, failures: off}
scopes: {streams:read: Read, streams:write: Write}
quotas: {general: {limit: 20, per: hour, by: key}}
routes:
  - GET /v1/streams/**: {scopes: [streams:read]}
  - POST /v1/streams/**: {scopes: [streams:write]}
  - GET /v1/little: {quotas: [general]}
  - GET /v1/rehearsed: {scopes: [streams:write], mode: observe}
"""
pytestmark = pytest.mark.timeout(300)
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "sidecar.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES_FILE = ROOT / "deploy" / "prometheus" / "sidecar.rules.yml"
PATIENCE_SECONDS = 120.0
VARIABLES = {"$job": "sidecar", "$instance": ".*", "$__rate_interval": "30s", "${datasource}": ""}


class Site:
    """A sidecar before an upstream, one before none, and a Prometheus that scrapes both."""

    def __init__(self, sidecars: list[Sidecar], prometheus: Prometheus) -> None:
        self.prometheus = prometheus
        self._healthy, self._lonely = sidecars
        self._keys = [sidecar.keys.issue(scopes=("streams:read",), expires="12h") for sidecar in sidecars]
        self._revoked = self._healthy.keys.issue(scopes=("streams:read",))
        self._healthy.keys.run("revoke", self._revoked.id)

    def load(self) -> None:
        """A few requests of each kind: allowed, refused for this and that, and lost for want of an upstream."""
        good, lonely = self._keys
        with self._healthy.connect() as connection:
            for _ in range(10):
                for key in (good.text, self._revoked.text, "acme_nobody"):
                    for method, target in (("GET", "/v1/streams/1"), ("POST", "/v1/streams"), ("GET", "/v1/little")):
                        connection.ask(method, target, [("Authorization", f"Bearer {key}")])
                connection.ask("GET", "/elsewhere")
                connection.ask("GET", "/v1/rehearsed")
        self._lonely.ask("GET", "/v1/streams/1", key=lonely)
        self._healthy.process.signal(signal.SIGHUP)

    def errors(self) -> list[str]:
        """Of the last scrape of each that has been scraped."""
        return [target["lastError"] for target in self.prometheus.targets() if target["health"] != "unknown"]

    def missing(self, expressions: list[str]) -> list[str]:
        """Those that bring no data. Raises AssertionError for one that is wrong."""
        return [one for one in expressions if not _numbers(self.prometheus.query(one))]


@pytest.fixture(scope="module")
def site(start_shared_sidecar: StartSidecar, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("prometheus")
    lonely = start_shared_sidecar(f"{CONFIG}workers: 2\n", upstream_url="http://127.0.0.1:1")
    sidecars = [start_shared_sidecar(CONFIG), lonely]
    with running_prometheus(folder, [sidecar.ops for sidecar in sidecars], RULES_FILE) as prometheus:
        yield Site(sidecars, prometheus)


def expressions(panel: dict[str, Any]) -> list[str]:
    """Its queries, with what Grafana puts in the place of the variables."""
    found = []
    for target in panel["targets"]:
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        found.append(expression)
    return found


def loaded_until_all_bring_data(site: Site, wanted: list[str]) -> list[str]:
    """What still brings none when the time is over."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    missing = wanted
    while missing and time.monotonic() < deadline:
        site.load()
        missing = site.missing(missing)
    return missing


def test_every_query_of_the_dashboard_brings_data(site: Site) -> None:
    wanted = [expression for panel in PANELS for expression in expressions(panel)]
    assert len(wanted) >= 30
    assert loaded_until_all_bring_data(site, wanted) == []


def test_every_recording_rule_brings_data(site: Site) -> None:
    assert loaded_until_all_bring_data(site, [rule["record"] for rule in RULES if "record" in rule]) == []


def test_prometheus_finds_nothing_wrong_with_the_scrapes(site: Site) -> None:
    """In the end: a busy machine may let one come too late."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (errors := site.errors()) != ["", ""] and time.monotonic() < deadline:
        site.load()
    assert errors == ["", ""]
    assert loaded_until_all_bring_data(site, ["up == 1"]) == []


def test_the_variables_of_the_dashboard_find_the_sidecars(site: Site) -> None:
    queries = [one["definition"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    assert len(queries) == 2
    for query in queries:
        found = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (job|instance)\)", query)
        assert found, query
        assert loaded_until_all_bring_data(site, [f"count by ({found[2]}) ({found[1]})"]) == []


def test_panels_have_names_and_do_not_lie_on_each_other() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_no_panel_is_bound_to_one_data_source() -> None:
    sources = {panel["datasource"]["uid"] for panel in PANELS}
    sources |= {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert sources == {"${datasource}"}


def _numbers(samples: list[dict[str, Any]]) -> list[float]:
    return [float(sample["value"][1]) for sample in samples if sample["value"][1] not in ("NaN", "+Inf")]
