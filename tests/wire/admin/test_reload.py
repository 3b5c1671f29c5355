"""A reload changes who may use the admin listener."""

import signal
from pathlib import Path

from tests.harness.running import StartSidecar
from tests.wire.admin.calls import ACME, CONFIG, OPS, Admin, admin_address, entry


def test_a_token_removed_from_the_file_stops_working_after_a_reload(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(CONFIG, encoding="utf-8")
    sidecar = start_sidecar(file)
    acme = Admin(address=admin_address(sidecar), token=ACME)
    assert acme.call("GET", "whoami").status == 200
    [line] = [line for line in CONFIG.splitlines() if "name: acme" in line]
    newcomer = f"    - {entry('new', 'new-token-0123456789abcdef', 'rights: read')}"
    file.write_text(CONFIG.replace(line, newcomer), encoding="utf-8")
    sidecar.process.signal(signal.SIGHUP)
    assert sidecar.process.stderr.wait_for(lambda line: "is in force" in line)
    assert acme.call("GET", "whoami").status == 401
    assert Admin(address=acme.address, token="new-token-0123456789abcdef").call("GET", "whoami").status == 200
    assert Admin(address=acme.address, token=OPS).call("GET", "whoami").status == 200
