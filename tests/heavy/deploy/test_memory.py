"""What the caps of a configuration allow fits the memory that manifests and compose file give.

The guide's table holds what each thing takes, as measured; configurations hold how many there can be.
"""

import re
from pathlib import Path

import pytest

from sidecar.config.build.config import Config
from sidecar.config.load import load
from sidecar.runtime.descriptors import Descriptors
from tests.harness.documents import read_yaml
from tests.harness.processes import ROOT
from tests.heavy.deploy.rendering import MANIFESTS
from tests.heavy.deploy.test_kubernetes import OVERLAYS, SHARED, config_of, containers

GUIDE = (ROOT / "deploy" / "guide" / "operations.md").read_text(encoding="utf-8")
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "Mi": 2**20, "m": 2**20}
KEPT_FREE = 0.1
"""Of the limit: for buffers of sockets, which are the kernel's."""
MINIMAL = "listen: 127.0.0.1:0\nupstream: http://127.0.0.1:1\nstore: sqlite:unused.db\nroutes: [GET /x: {}]\n"


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+) ?([A-Za-z]+)", text.strip()).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def rows() -> list[tuple[str, str, str, str]]:
    """What each takes, the cap, and the sums for the default and for the manifests; the last row is the whole."""
    table = GUIDE[GUIDE.index("| what | each | times |") :].split("\n\n")[0].split("\n")[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [(each, times.strip("`"), default, manifests) for _, each, times, default, manifests in cells]


def caps(config: Config) -> dict[str, int]:
    return {
        "": 1,
        "limits.connections": config.limits.connections,
        "limits.held_bytes": config.limits.held_bytes,
        "keys.cache_size": config.keys.cache_size,
        "limiter.entries": config.limiter.entries,
    }


def sums(config: Config) -> list[str]:
    """As the table has them: a row each, and the whole."""
    mebibytes = [round(size(each) * caps(config)[times] / 2**20) for each, times, *_ in rows()[:-1]]
    return [f"{number} MiB" for number in (*mebibytes, sum(mebibytes))]


def default_of(tmp_path: Path) -> Config:
    file = tmp_path / "minimal.yaml"
    file.write_text(MINIMAL)
    return load(str(file), environ={})


@pytest.mark.requirement("S7.7")
def test_the_guide_adds_up_the_defaults_and_what_the_manifests_configure(tmp_path: Path) -> None:
    assert [row[2] for row in rows()] == sums(default_of(tmp_path))
    assert [row[3] for row in rows()] == sums(config_of("overlays/native", tmp_path))


@pytest.mark.requirement("S7.7")
@pytest.mark.parametrize("folder", [*OVERLAYS, *SHARED])
def test_the_limits_of_a_pod_fit_its_memory(folder: str, tmp_path: Path) -> None:
    limit = size(containers(folder)["sidecar"]["resources"]["limits"]["memory"])
    assert size(sums(config_of(folder, tmp_path))[-1]) <= limit * (1 - KEPT_FREE)


@pytest.mark.requirement("S7.7")
def test_the_limits_fit_the_memory_in_the_compose_file(tmp_path: Path) -> None:
    service = read_yaml((ROOT / "deploy" / "compose" / "compose.yaml").read_text())["services"]["sidecar"]
    assert "../kubernetes/base/config:/etc/sidecar:ro" in service["volumes"], "the same configuration"
    config = load(str(MANIFESTS / "base" / "config" / "sidecar.yaml"), environ={})
    assert size(sums(config)[-1]) <= size(service["mem_limit"]) * (1 - KEPT_FREE)


@pytest.mark.requirement("S7.7")
def test_the_default_of_connections_fits_the_files_that_the_systemd_unit_allows(tmp_path: Path) -> None:
    unit = (ROOT / "deploy" / "systemd" / "sidecar.service").read_text()
    files = int(re.findall(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE)[0])
    config = default_of(tmp_path)
    room = Descriptors(config, limit=files, held=32).room(config)
    assert room.limits.connections == config.limits.connections


def test_the_cpu_that_is_requested_carries_the_load_that_is_named() -> None:
    written = (MANIFESTS / "base" / "deployment.yaml").read_text()
    milliseconds, millicores, load = re.findall(
        r"([\d.]+) ms of CPU per request: (\d+)m is enough for (\d+) requests", re.sub(r"\n +# ", " ", written)
    )[0]
    assert f"cpu: {millicores}m" in written
    assert float(milliseconds) * int(load) <= int(millicores)
    assert f"{milliseconds} ms for a forwarded request" in GUIDE
