"""Configurations of a few lines."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.config.build.config import Config
from sidecar.config.load import load

BEGIN = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
"""
KEYS = "keys: {environments: {live: ex_, test: ey_}}\n"
SCOPES = """\
scopes:
  read: Read
  write: {includes: [read]}
  admin: Administer
  videos:read: Watch
  videos:write: {includes: ["videos:read"]}
"""

Configured = Callable[..., Config]


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    """Loads a configuration of these routes, and of other lines."""
    made = 0

    def configure(routes: str, more: str = KEYS + SCOPES) -> Config:
        nonlocal made
        made += 1
        file = tmp_path / f"{made}.yaml"
        file.write_text(f"{BEGIN}{more}routes:\n{routes}", encoding="utf-8")
        return load(str(file), environ={})

    return configure
