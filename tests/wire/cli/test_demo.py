"""`sidecar demo`: what a newcomer sees first."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from typing import IO

from tests.harness import forks
from tests.harness.processes import ROOT, clean_environ
from tests.harness.tools import needed
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


def started() -> "subprocess.Popen[str]":
    command, passed = forks.command("demo"), [forks.server().fileno()]
    return subprocess.Popen(command, cwd=ROOT, env=clean_environ(), stdout=subprocess.PIPE, text=True, pass_fds=passed)


def read_until(stream: IO[str], start: str) -> list[str]:
    shown = []
    for line in stream:
        shown.append(line)
        if line.startswith(start):
            break
    return shown


def hold(port: int) -> socket.socket | None:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


def test_the_demo_says_what_to_try_and_runs_until_it_is_interrupted() -> None:
    with started() as process:
        assert process.stdout is not None
        shown = read_until(process.stdout, "Metrics: ")
        [page] = re.findall(r"http://([0-9.]+):([0-9]+)/  ", "".join(shown))
        [token] = re.findall(r"Sign in with this admin token: (\S+)", "".join(shown))
        listed = Admin(address=(page[0], int(page[1])), token=token).call("GET", "keys")
        os.kill(process.pid, signal.SIGINT)
    assert process.returncode == 0
    assert {key["name"] for key in listed.json["keys"]} == {"reader", "writer", "reporter"}
    curls = [line.strip() for line in shown if line.strip().startswith("curl -i")]
    assert len(curls) == 14
    assert any("--path-as-is" in curl for curl in curls)


def test_the_lines_that_the_demo_prints_can_be_pasted_and_each_decision_is_shown() -> None:
    # The first port is in use: that must not prevent the start.
    held = hold(8080)
    with started() as process:
        assert process.stdout is not None
        shown = read_until(process.stdout, "Metrics: ")
        typed = [line.strip() for line in shown if line.strip().startswith(("export ", "curl -i"))]
        done = subprocess.run([needed("bash"), "-c", "\n".join(typed)], capture_output=True, text=True, check=True)
        decided = [json.loads(process.stdout.readline()) for _ in range(14)]
        os.kill(process.pid, signal.SIGINT)
    if held is not None:
        held.close()
    statuses = [int(status) for status in re.findall(r"HTTP/1\.1 (\d{3})", done.stdout)]
    assert [line["status"] for line in decided] == statuses
    assert Counter(statuses) == {200: 7, 401: 2, 403: 3, 400: 1, 429: 1}
