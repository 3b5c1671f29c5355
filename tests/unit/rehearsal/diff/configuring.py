"""Configurations of a few lines."""

from pathlib import Path

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


class Configured:
    """Loads configurations of these routes, and of other lines, each from a file of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made = folder, 0

    def __call__(self, routes: str, more: str = KEYS + SCOPES) -> Config:
        self._made += 1
        file = self._folder / f"{self._made}.yaml"
        file.write_text(f"{BEGIN}{more}routes:\n{routes}", encoding="utf-8")
        return load(str(file), environ={})
