"""Without a cluster: the systemd unit and the compose file."""

import configparser
import json
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sidecar.config.document import Drain
from tests.harness.documents import read_yaml
from tests.harness.processes import ROOT
from tests.harness.tools import needed

UNIT = ROOT / "deploy" / "systemd" / "sidecar.service"
COMPOSE = ROOT / "deploy" / "compose"


def schema() -> Any:
    """That of the Compose specification, found without importing the package, which takes a tenth of a second."""
    found = find_spec("check_jsonschema")
    assert found is not None and found.origin is not None
    return json.loads((Path(found.origin).parent / "builtin_schemas/vendor/compose-spec.json").read_text())


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program that is there in the place of the one that is not installed."""
    file = tmp_path / "sidecar.service"
    file.write_text(UNIT.read_text(encoding="utf-8").replace("=/opt/sidecar/bin/sidecar", "=/bin/true"))
    return file


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([needed("systemd-analyze"), *arguments], capture_output=True, text=True)


def test_systemd_understands_every_line_of_the_unit(unit: Path) -> None:
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_misspelt_line_in_the_unit_is_detected(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("ProtectHome=", "ProtectHomes="))
    assert "ProtectHomes" in analyze("verify", "--man=no", str(unit)).stderr


def test_systemd_calls_the_unit_well_confined(unit: Path) -> None:
    # In tenths; 20 is `OK` with room to spare, and a service of no confinement has 96.
    done = analyze("security", "--offline=yes", "--no-pager", "--threshold=20", str(unit))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_leaves_time_to_drain_and_does_not_repeat_what_cannot_work() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    service = parser["Service"]
    assert int(service["TimeoutStopSec"].removesuffix("s")) > Drain().delay + Drain().timeout
    assert service["RestartPreventExitStatus"] == "2"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"


@pytest.fixture
def compose() -> dict[str, Any]:
    read: dict[str, Any] = read_yaml((COMPOSE / "compose.yaml").read_text(encoding="utf-8"))
    return read


def test_the_compose_file_is_valid(compose: dict[str, Any]) -> None:
    jsonschema.validate(compose, schema())
    compose["services"]["sidecar"]["readonly"] = True
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(compose, schema())


def test_the_compose_file_publishes_the_sidecar_only(compose: dict[str, Any]) -> None:
    sidecar, service = compose["services"]["sidecar"], compose["services"]["service"]
    assert service["network_mode"] == "service:sidecar"
    assert "ports" not in service
    assert service["entrypoint"][3:5] == ["--bind", "127.0.0.1"]
    assert all(port.startswith("127.0.0.1:") for port in sidecar["ports"])


@pytest.mark.parametrize("name", ["sidecar", "service"])
def test_the_containers_of_compose_may_not_do_more_than_they_need(compose: dict[str, Any], name: str) -> None:
    container = compose["services"][name]
    assert container["user"] == "65532:65532"
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert "mem_limit" in container


def test_what_compose_mounts_from_the_repository_is_there(compose: dict[str, Any]) -> None:
    mounts = [mount.split(":")[0] for each in compose["services"].values() for mount in each["volumes"]]
    assert all((COMPOSE / mount).exists() for mount in mounts if mount.startswith("."))
    build = compose["services"]["sidecar"]["build"]
    assert (COMPOSE / build["context"] / build["dockerfile"]).is_file()
    example = (COMPOSE / "secrets.env.example").read_text()
    assert re.findall(r"^[^#\n]+=(.*)$", example, re.MULTILINE) == [""], "an example holds no secret"
    assert (COMPOSE / ".gitignore").read_text().split() == ["secrets.env"]
