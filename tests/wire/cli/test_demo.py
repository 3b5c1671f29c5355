"""`sidecar demo`: what a newcomer sees first."""

import os
import re
import signal
import subprocess
import sys

from tests.harness.processes import ROOT, clean_environ
from tests.wire.admin.calls import Admin

COMMAND = [sys.executable, "-m", "sidecar", "demo"]


def test_the_demo_checks_itself() -> None:
    done = subprocess.run(
        [*COMMAND, "--check"], cwd=ROOT, env=clean_environ(), capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = done.stdout.splitlines()
    assert rows[0].split() == ["request", "key", "status", "reason", "as", "expected"]
    assert all(row.endswith("yes") for row in rows[1:-1])
    assert rows[-1] == f"{len(rows) - 2} of {len(rows) - 2} responses as expected"


def test_the_demo_says_what_to_try_and_runs_until_it_is_interrupted() -> None:
    environ = clean_environ()
    with subprocess.Popen(COMMAND, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown = []
        for line in process.stdout:
            shown.append(line)
            if line.startswith("Metrics: "):
                break
        [page] = re.findall(r"http://([0-9.]+):([0-9]+)/  ", "".join(shown))
        [token] = re.findall(r"Sign in with this admin token: (\S+)", "".join(shown))
        listed = Admin(address=(page[0], int(page[1])), token=token).call("GET", "keys")
        os.kill(process.pid, signal.SIGINT)
    assert process.returncode == 0
    assert {key["name"] for key in listed.json["keys"]} == {"reader", "writer", "reporter"}
    curls = [line.strip() for line in shown if line.strip().startswith("curl -i")]
    assert len(curls) == 14
    assert any("--path-as-is" in curl for curl in curls)
