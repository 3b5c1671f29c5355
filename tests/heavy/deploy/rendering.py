"""The manifests as a cluster gets them.

`rendered/` holds what Kustomize makes of each folder that is applied, with the digest of what it was made from, so that
they are checked also where there is no Kustomize. After a change: `python -m tests.heavy.deploy.rendering`.
"""

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.harness.documents import read_all_yaml
from tests.harness.processes import ROOT

MANIFESTS = ROOT / "deploy" / "kubernetes"
RENDERED = Path(__file__).parent / "rendered"
APPLIED = (
    "overlays/native",
    "overlays/classic",
    "overlays/ephemeral",
    "overlays/git",
    "store",
    "overlays/shared",
    "overlays/central",
    "shared-store",
)

Manifest = dict[str, Any]


def kustomize() -> list[str] | None:
    """The command that builds a folder, or None where neither program is installed."""
    if program := shutil.which("kustomize"):
        return [program, "build"]
    return [program, "kustomize"] if (program := shutil.which("kubectl")) else None


def build(command: list[str], folder: Path) -> str:
    """What Kustomize makes of `folder`. Raises AssertionError with its words."""
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower(), done.stderr
    return done.stdout


def stored(folder: str) -> list[Manifest]:
    """What was rendered of `folder` when it was last changed."""
    return manifests(_file(folder).read_text(encoding="utf-8"))


def stored_digest(folder: str) -> str:
    return _file(folder).read_text(encoding="utf-8").splitlines()[0].removeprefix("# Made from ")


def manifests(text: str) -> list[Manifest]:
    return read_all_yaml(text)


def digest() -> str:
    """SHA-256 over every source, by name and content."""
    total = hashlib.sha256()
    for file in sorted(path for path in MANIFESTS.rglob("*") if path.is_file() and path.name != "secrets.env"):
        total.update(f"{file.relative_to(MANIFESTS).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return total.hexdigest()


def _file(folder: str) -> Path:
    return RENDERED / f"{Path(folder).name}.yaml"


def main() -> None:
    command = kustomize()
    assert command, "this needs kubectl or kustomize"
    for folder in APPLIED:
        text = f"# Made from {digest()}\n{build(command, MANIFESTS / folder)}"
        _file(folder).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
