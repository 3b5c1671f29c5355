"""How many policy tests `sidecar test` judges in a second, on one core.

    python -m tests.bench.policy_tests                 20,000 cases, in one line each, and in tables
    python -m tests.bench.policy_tests --cases 5000 --rounds 20

CPU time, the least of several rounds, of reading a file and of judging its cases; the configuration is that of Hakari.
"""

import argparse
import gc
import os
import tempfile
import time
from pathlib import Path

from sidecar.config.load import load
from sidecar.limiter.memory import MemoryLimiter
from sidecar.rehearsal.policy_tests.coverage import Reached
from sidecar.rehearsal.policy_tests.results import results_of, selected
from sidecar.rehearsal.policy_tests.suite import Suite, read_suite
from tests.harness.running import EXAMPLES

HEAD = f"""\
config: {EXAMPLES / "hakari.yaml"}
keys:
  reader: {{tenant: prj_1, scopes: ["streams:read"]}}
  writer: {{tenant: prj_1, scopes: ["streams:write"]}}
  other: {{tenant: prj_2}}
"""


def lines(cases: int) -> str:
    """One request in each line, half of them refused."""
    rows = (("prj_1", "allow") if number % 2 else ("prj_2", "wrong_tenant") for number in range(cases))
    shown = (
        f"  - GET /v1/projects/{project}/streams/{number} as reader: {word}\n"
        for number, (project, word) in enumerate(rows)
    )
    return "".join((HEAD, "cases:\n", *shown))


def table(cases: int) -> str:
    """Four keys by a quarter as many requests."""
    row = "[missing_credential, insufficient_scope, allow, wrong_tenant]"
    rows = (f"      PUT /v1/projects/prj_1/streams/{number}: {row}\n" for number in range(cases // 4))
    return "".join((HEAD, "tables:\n  - keys: [none, reader, writer, other]\n    requests:\n", *rows))


def read(file: Path) -> Suite:
    return read_suite(
        str(file), config_path=None, load=lambda path, given: load(path, environ=given), environ=os.environ
    )


def measured(file: Path) -> tuple[float, float]:
    """Seconds to read, and to judge."""
    began = time.process_time()
    suite = read(file)
    then = time.process_time()
    results = list(results_of(suite, MemoryLimiter, wanted=selected(suite, ""), reached=Reached()))
    end = time.process_time()
    assert not any(result.differences for result in results)
    return then - began, end - then


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    wanted = parser.parse_args()
    gc.disable()  # As the command does.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.tests.yml"
        for name, text in (("lines", lines(wanted.cases)), ("tables", table(wanted.cases))):
            file.write_text(text, encoding="utf-8")
            reading, judging = zip(*(measured(file) for _ in range(wanted.rounds)), strict=True)
            each = [min(times) / wanted.cases * 1e6 for times in (reading, judging)]
            speed = 1e6 / sum(each)
            print(f"{name:<8}read {each[0]:5.1f} µs   judge {each[1]:5.1f} µs   {speed:8,.0f} cases a second")


if __name__ == "__main__":
    main()
