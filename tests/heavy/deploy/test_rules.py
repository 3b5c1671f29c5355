"""The rules for Prometheus, read and tested by its own tool."""

import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config.load import load
from sidecar.core.apikey import Hasher
from sidecar.limiter.memory import MemoryLimiter
from sidecar.limiter.remote import RemoteStatistics
from sidecar.runtime.key_file import KeyFileWatch, open_key_file
from sidecar.runtime.telemetry import ReplicaInStep
from sidecar.telemetry.limiter import LimiterMetrics, RemoteLimiterMetrics
from sidecar.telemetry.metrics import Metrics, StoreMetrics, UsageMetrics
from sidecar.telemetry.observation import ObservingMetrics, WouldDenyMetrics
from sidecar.telemetry.reloads import Reloads
from sidecar.telemetry.snapshots import WorkerMetrics
from tests.harness.clock import Clock
from tests.harness.documents import read_yaml
from tests.harness.processes import ROOT, clean_environ
from tests.harness.tools import needed

FOLDER = ROOT / "deploy" / "prometheus"
GIVEN_RULES = (FOLDER / "sidecar.rules.yml").read_text(encoding="utf-8")
RULES = [rule for group in read_yaml(GIVEN_RULES)["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
STORIES = (FOLDER / "sidecar.rules.test.yml").read_text(encoding="utf-8")


def promtool(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    environ = clean_environ(GOGC="400")  # It is gone before its garbage is in anybody's way.
    return subprocess.run([needed("promtool"), *arguments], cwd=folder, env=environ, capture_output=True, text=True)


def test_prometheus_accepts_the_rules() -> None:
    done = promtool("check", "rules", "--lint-fatal", "sidecar.rules.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("interval", "long"), [("2m", False), ("4m", True)], ids=["short", "long"])
def test_each_story_raises_the_alerts_that_it_should_and_no_other(tmp_path: Path, interval: str, long: bool) -> None:
    stories = read_yaml(STORIES)
    stories["tests"] = [story for story in stories["tests"] if is_long(story) == long]
    assert len(stories["tests"]) > 3
    done = stories_told(tmp_path, stories | {"evaluation_interval": interval})
    assert done.returncode == 0, done.stdout + done.stderr


def is_long(story: dict[str, Any]) -> bool:
    """Whether it takes hours. Evaluated every four minutes and not every other one, such a story costs half.

    Not less often: promtool evaluates groups in any order, and a value is seen by another group for five minutes only.
    """
    looks = [*story.get("promql_expr_test", ()), *story.get("alert_rule_test", ())]
    return any("h" in look["eval_time"] for look in looks)


def stories_told(folder: Path, stories: dict[str, Any], rules: str = GIVEN_RULES) -> subprocess.CompletedProcess[str]:
    (folder / "sidecar.rules.yml").write_text(rules, encoding="utf-8")
    (folder / "stories.yml").write_text(yaml.safe_dump(stories), encoding="utf-8")
    return promtool("test", "rules", "stories.yml", folder=folder)


def test_a_story_fails_when_a_threshold_moves(tmp_path: Path) -> None:
    stories = read_yaml(STORIES)
    stories["tests"] = [story for story in stories["tests"] if story["name"].startswith("an upstream that fails")]
    assert len(stories["tests"]) == 1
    assert stories_told(tmp_path, stories, GIVEN_RULES.replace("14.4 * 0.001", "144 * 0.1")).returncode != 0


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_describes_the_problem_and_the_remedy_and_has_a_test(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("info", "warning", "critical")
    assert alert["annotations"].keys() == {"summary", "runbook"}
    assert len(alert["annotations"]["runbook"]) > 40
    assert "\n" not in alert["annotations"]["runbook"].strip()
    assert f'alertname="{alert["alert"]}"' in STORIES


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of all series, as Prometheus knows them."""
    collectors = (
        Metrics(),
        Reloads("", at=0),
        UsageMetrics({}, dropped=int),
        LimiterMetrics(MemoryLimiter()),
        RemoteLimiterMetrics(RemoteStatistics()),
        StoreMetrics(str, grace=lambda: (False, 0), processes=int),
        ReplicaInStep(bool),
        WorkerMetrics(int, int),
        WouldDenyMetrics(),
        ObservingMetrics(bool),
    )
    families = {family.name: family.type for collector in collectors for family in collector.collect()}
    families.update(asyncio.run(of_a_key_file(tmp_path_factory.mktemp("keys"))))
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",), "info": ("_info",)}
    return {f"{name}{suffix}" for name, kind in families.items() for suffix in suffixes[kind]}


async def of_a_key_file(folder: Path) -> dict[str, str]:
    """Name to type of what is told of keys in a file."""
    (folder / "keys.yaml").write_text("[]", encoding="ascii")
    config = folder / "sidecar.yaml"
    config.write_text(f"listen: 127.0.0.1:0\nupstream: http://127.0.0.1:1\nstore: file://{folder}/keys.yaml\n")
    settings = load(str(config), environ={})
    store = await open_key_file(settings, Hasher(), clock=Clock(0.0), timings=lambda operation, seconds: None)
    try:
        return {family.name: family.type for family in KeyFileWatch(store, clock=Clock(0.0)).collect()}
    finally:
        await store.close()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_read_metrics_that_there_are(rule: dict[str, Any], known: set[str]) -> None:
    assert set(re.findall(r"(?<![\w:])sidecar_\w+", rule["expr"])) <= known
