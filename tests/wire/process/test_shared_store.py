"""Quotas are counted by each process: a sidecar that starts beside another one on the same store says so."""

from tests.harness.keys import run_cli
from tests.harness.running import Sidecar, StartSidecar

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
routes:
- GET /v1/**: {}
"""


def warnings(sidecar: Sidecar) -> list[str]:
    """What it said until it listened, and the line after that."""
    assert sidecar.process.stderr.wait_for(lambda line: "active key" in line) is not None
    return [line for line in sidecar.process.stderr.all() if "another sidecar serves the store" in line]


def test_a_second_sidecar_on_a_store_says_that_each_counts_for_itself(start_sidecar: StartSidecar) -> None:
    first = start_sidecar(CONFIG)
    second, third = (start_sidecar(CONFIG, store=first.keys.store) for _ in range(2))
    assert [len(warnings(each)) for each in (first, second, third)] == [0, 1, 1]
    assert str(first.keys.store) in warnings(second)[0]


def test_one_that_starts_after_another_has_ended_says_nothing(start_sidecar: StartSidecar) -> None:
    first = start_sidecar(CONFIG)
    assert first.stop() == 0
    assert warnings(start_sidecar(CONFIG, store=first.keys.store)) == []


def test_both_see_what_a_command_changes(start_sidecar: StartSidecar) -> None:
    """The mark takes no lock away from SQLite."""
    first = start_sidecar(CONFIG)
    second = start_sidecar(CONFIG, store=first.keys.store)
    key = first.keys.issue()
    assert [each.ask("GET", "/v1/x", key=key).status for each in (first, second)] == [200, 200]
    first.keys.told("revoke", key.id)
    assert [each.ask("GET", "/v1/x", key=key).status for each in (first, second)] == [401, 401]
    assert second.stop() == 0
    assert run_cli("audit", "verify", "--store", first.keys.url).exit_code == 0
    assert first.ask("GET", "/v1/x", key=key).status == 401
