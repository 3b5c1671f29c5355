"""A file of policy tests next to a configuration, and the result of `sidecar test`."""

import os
from pathlib import Path

import pytest

from sidecar.config.errors import ConfigError
from sidecar.config.load import load
from sidecar.limiter.memory import MemoryLimiter
from sidecar.rehearsal.policy_tests.coverage import Coverage, Reached
from sidecar.rehearsal.policy_tests.results import Result, results_of, selected
from sidecar.rehearsal.policy_tests.suite import Suite, read_suite

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
upstreams: {billing: "http://127.0.0.1:2"}
keys:
  from: [{header: Authorization, scheme: Bearer}]
  environments: {live: ex_live_, test: ex_test_}
  pass_through: [{cookie: session}]
  failures: {limit: 3, per: minute}
scopes:
  read: Read
  write: {includes: [read]}
quotas:
  few: {limit: 3, per: hour}
  many: {limit: 100, per: day}
plans:
  pro: {few: 30}
cors: {origins: ["https://app.example.com"]}
routes:
  - GET /items/**: {scopes: [read], quotas: [few]}
  - POST /items/**: {scopes: [write], quotas: [few, {quota: many, cost: 5}]}
  - "* /orgs/{org}/**": {tenant: org}
  - "* /live/**": {environments: [live], upstream: billing}
  - GET /open: {public: true}
  - GET /me: {respond: {id: "{key.id}", left: "{quota.remaining}"}, quotas: [few]}
  - GET /items/hidden/**: {deny: true}
identity: {headers: {X-Key: "{key.id}", X-Plan: "{key.plan}"}}
rate_limit_headers: {x: true}
"""
KEYS = """\
config: sidecar.yaml
keys:
  reader: {scopes: [read], tenant: acme}
  writer: {scopes: [write], tenant: acme, plan: pro}
  tester: {scopes: [read], environment: test}
"""
"""Five lines: appended text begins in line 6."""


class Place:
    """A folder with CONFIG, in which files of tests are written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "sidecar.yaml"
        self.config.write_text(CONFIG, encoding="utf-8")

    def read(self, text: str | bytes, *, head: str = KEYS) -> Suite:
        file = self.folder / "policy.tests.yml"
        file.write_bytes(text if isinstance(text, bytes) else (head + text).encode())
        return read_suite(
            str(file), config_path=None, load=lambda path, environ: load(path, environ=environ), environ=os.environ
        )

    def run(self, text: str, *, head: str = KEYS, only: str = "") -> list[Result]:
        suite = self.read(text, head=head)
        return list(results_of(suite, MemoryLimiter, wanted=selected(suite, only), reached=Reached()))

    def passes(self, text: str) -> int:
        """How many cases there are; all pass."""
        results = self.run(text)
        assert [(result.title, result.differences) for result in results if result.differences] == []
        return len(results)

    def differences(self, text: str) -> list[tuple[str, str, str]]:
        """Of all cases: what, expected, got."""
        return [(one.what, one.expected, one.got) for result in self.run(text) for one in result.differences]

    def problems(self, text: str | bytes, *, head: str = KEYS) -> list[str]:
        """The error lines of an invalid file, without the folder's name."""
        try:
            self.read(text, head=head)
        except ConfigError as error:
            return [str(problem).replace(f"{self.folder}/", "") for problem in error.problems]
        return []

    def coverage(self, text: str) -> Coverage:
        suite, reached = self.read(text), Reached()
        list(results_of(suite, MemoryLimiter, wanted=selected(suite, ""), reached=reached))
        return reached.coverage(suite.config)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
