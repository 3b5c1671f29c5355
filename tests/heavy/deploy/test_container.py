"""The image, as far as it goes without an engine: its build steps run in a folder, and so does what they make."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.processes import ROOT, clean_environ
from tests.harness.tools import needed
from tests.harness.wire import Connection
from tests.heavy.deploy.dockerfile import Instruction, instructions
from tests.heavy.deploy.rendering import MANIFESTS

pytestmark = pytest.mark.timeout(600)
CONTAINER = ROOT / "deploy" / "container"
STEPS = instructions((CONTAINER / "Dockerfile").read_text(encoding="utf-8"))
LAST = max(step.stage for step in STEPS)
USER = 65532
_PLACES = ("/src", "/build", "/ours", "/wheels", "/opt/sidecar", "/var/lib/sidecar")
_OFFLINE = re.compile(r"NewConnectionError|NameResolutionError|Temporary failure in name resolution")
_LISTENER = re.compile(rb"sidecar: (\w+) listener on 127\.0\.0\.1:(\d+)")


def of_word(word: str, *, stage: int = LAST) -> list[Instruction]:
    return [step for step in STEPS if step.word == word and step.stage == stage]


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """A folder with what the image holds, under the paths that it has there. Any user may read it, its owner too."""
    # Not pytest's own folder, which no other user may enter.
    with tempfile.TemporaryDirectory(prefix="sidecar-image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for step in STEPS:
            if step.stage == 1 and step.word == "COPY":
                copy(step, folder)
            elif step.stage == 1 and step.word == "RUN" and "apt-get" not in step.text:
                run(step, folder)
        for place in folder.rglob("*"):
            if not place.is_symlink():
                place.chmod(place.stat().st_mode & ~0o222)
        yield folder
        for place in (folder, *folder.rglob("*")):
            if place.is_dir() and not place.is_symlink():
                place.chmod(0o755)


def copy(step: Instruction, folder: Path) -> None:
    *sources, target = step.text.split()
    for source in sources:
        found, into = ROOT / source, Path(f"{folder}{target}")
        if found.is_dir():
            shutil.copytree(found, into, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy(found, into)


def run(step: Instruction, folder: Path) -> None:
    """The very command, with the image's folders under `folder` and this Python in the place of the base's.

    The environment that only builds gets this Python's pip: to install and compile one costs more than to use it.
    """
    if step.text == "python3 -m venv /build":
        lend_pip(folder / "build" / "bin" / "pip")
        return
    command = step.text
    for place in _PLACES:
        command = re.sub(rf"(?<![\w/]){place}\b", f"{folder}{place}", command)
    command = re.sub(r"^python3 ", f"{sys.executable} ", command)
    given = clean_environ(EXTRAS="", PIP_DISABLE_PIP_VERSION_CHECK="1")
    if "/opt/sidecar" not in step.text:
        given["PIP_NO_COMPILE"] = "1"  # What builds the wheel is used once.
    done = subprocess.run(["sh", "-euc", command], env=given, capture_output=True, text=True)
    if done.returncode and _OFFLINE.search(done.stderr) and os.environ.get("CI") != "true":
        pytest.skip("the package index is out of reach")
    assert done.returncode == 0, done.stdout + done.stderr


def lend_pip(place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pip "$@"\n', encoding="utf-8")
    place.chmod(0o755)


def as_user(*command: str) -> list[str]:
    """`command` as the image's user, where this one may become another."""
    if os.getuid() != 0:
        return list(command)
    return [needed("setpriv"), f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs", *command]


def environ(folder: Path) -> dict[str, str]:
    """That of the image and nothing else."""
    pairs = [pair.partition("=") for step in of_word("ENV") for pair in step.text.split()]
    return {name: value.replace("/opt/sidecar", f"{folder}/opt/sidecar") for name, _, value in pairs}


def test_what_runs_is_a_number_and_has_no_shell_to_run_in() -> None:
    [user], [entry], [command] = of_word("USER"), of_word("ENTRYPOINT"), of_word("CMD")
    assert user.text == f"{USER}:{USER}"
    assert [*entry.list, *command.list] == ["/opt/sidecar/bin/sidecar", "serve"]
    assert of_word("RUN") == []
    assert [step for step in STEPS if step.word in ("HEALTHCHECK", "ADD", "VOLUME")] == []
    assert all("--from=build" in step.text for step in of_word("COPY"))


def test_both_bases_can_be_pinned_by_digest() -> None:
    given = {step.text.partition("=")[0] for step in of_word("ARG", stage=0)}
    used = {match for step in STEPS if step.word == "FROM" for match in re.findall(r"\$\{(\w+)\}", step.text)}
    assert used == given == {"BUILD_IMAGE", "RUN_IMAGE"}


def test_nothing_but_what_is_copied_is_sent_to_the_build() -> None:
    ignored = (CONTAINER / "Dockerfile.dockerignore").read_text().split("\n")
    sent = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert sent == {word for step in of_word("COPY", stage=1) for word in step.text.split()[:-1]}


def test_foreign_packages_come_as_wheels_only() -> None:
    pips = [part for step in of_word("RUN", stage=1) for part in step.text.split("&&") if "/pip " in part]
    fetching = [part for part in pips if "--no-deps" not in part and "--no-index" not in part]
    assert len(fetching) == 1
    assert "--only-binary :all:" in fetching[0]


def test_the_image_has_no_installer_and_no_compiler(image: Path) -> None:
    packages = {path.name.lower() for path in image.glob("opt/sidecar/lib/python*/site-packages/*")}
    assert {"aiohttp", "sidecar"} <= packages
    assert not packages & {"pip", "setuptools", "wheel", "pytest"}
    [cached] = image.glob("opt/sidecar/lib/python*/site-packages/sidecar/gate/__pycache__/gate.*.pyc")
    assert cached.stat().st_size


def test_it_serves_as_another_user_from_files_that_nobody_can_write(image: Path) -> None:
    entry, given = f"{image}/opt/sidecar/bin/sidecar", environ(image)
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-state-")))
        if os.getuid() == 0:
            os.chown(state, USER, USER)
        config = state / "sidecar.yaml"
        written = (MANIFESTS / "base" / "config" / "sidecar.yaml").read_text(encoding="utf-8")
        config.write_text(written.replace("/var/lib/sidecar", str(state)), encoding="utf-8")
        given |= {"SIDECAR_CONFIG": str(config), "SIDECAR_STORE": f"sqlite://{state}/keys.db"}
        given |= {"SIDECAR_PEPPER": "only-for-this-test-of-it"}
        before = {path: path.lstat().st_mtime_ns for path in image.rglob("*")}
        made = subprocess.run(as_user(entry, "store", "make"), env=given, cwd="/", capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        assert probed(as_user(entry, "serve", "--listen", "127.0.0.1:0", "--ops", "127.0.0.1:0"), given) == (200, 401)
        assert {path: path.lstat().st_mtime_ns for path in image.rglob("*")} == before


def probed(command: list[str], given: dict[str, str]) -> tuple[int, int]:
    """The statuses of /readyz and of a request without a key; then SIGTERM, which must end it well."""
    process = subprocess.Popen(command, env=given, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr
    ports: dict[bytes, int] = {}
    told: list[bytes] = []
    for line in process.stderr:
        told.append(line)
        if found := _LISTENER.match(line):
            ports[found[1]] = int(found[2])
        if ports.keys() >= {b"data", b"ops"}:
            break
    assert ports.keys() >= {b"data", b"ops"}, told
    with Connection(("127.0.0.1", ports[b"ops"])) as ops, Connection(("127.0.0.1", ports[b"data"])) as data:
        statuses = ops.ask("GET", "/readyz").status, data.ask("GET", "/v1/hello").status
    process.terminate()
    process.stderr.close()
    assert process.wait(30) == 0
    return statuses
