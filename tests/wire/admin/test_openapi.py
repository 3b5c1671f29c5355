"""The OpenAPI document, and schemathesis against what it describes."""

import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.harness.processes import clean_environ
from tests.harness.running import StartSidecar
from tests.heavy.fuzz.budget import FACTOR
from tests.wire.admin.calls import CONFIG, OPS, Admin, admin_address

SEED = "20260101"
ROOT = Path(__file__).parents[3]
# Whether valid data is accepted also depends on the store: a revoked key, an old entity tag, a used name.
SETTINGS = """
hooks = "tests.wire.admin.valid_values"
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 404, 409, 412, 422]
"""


def test_the_document_describes_every_operation_and_only_known_types(ops: Admin) -> None:
    document = ops.call("GET", "/api/openapi.json").json
    assert document["openapi"] == "3.1.0"
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert len({one["operationId"] for one in operations}) == len(operations) == 27
    for one in operations:
        assert {"400", "401", "403", "421", "429", "503"} <= one["responses"].keys()
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.timeout(300)
def test_schemathesis_finds_no_5xx_nothing_undocumented_and_nothing_open(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    sidecar = start_sidecar(CONFIG + "trusted_proxies: [127.0.0.1]\n")
    ops = Admin(address=admin_address(sidecar))
    ops.issue(scopes=["streams:read"])
    base = f"http://{ops.address[0]}:{ops.address[1]}"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{base}/api/openapi.json"]
    command += ["--header", f"Authorization: Bearer {OPS}", "--seed", SEED, "--no-color"]
    command += ["--max-examples", str(2 * FACTOR), "--checks", "all", "--continue-on-failure"]
    (tmp_path / "schemathesis.toml").write_text(SETTINGS, encoding="utf-8")
    environ = {**clean_environ(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=290, check=False)
    problems = [line for line in done.stdout.splitlines() if line.startswith("- ST")]
    # Probes with a wrong token and no client of their own share one address, which is slowed after many.
    slowed = done.stdout.count("Expected 401 or 403, got `429 Too Many Requests`")
    assert done.returncode == 0 or len(problems) == slowed > 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Tested: 27" in done.stdout
    assert not any("admin request failed" in line for line in sidecar.process.stderr.all())
