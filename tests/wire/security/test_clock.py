"""The clock of a real process jumps by days, by libfaketime."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.running import Sidecar, StartSidecar
from tests.harness.tools import needed

LIMIT = 3
CONFIG = f"""\
listen: 127.0.0.1:0
ops: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
quotas:
  fixed: {{limit: {LIMIT}, per: day}}
  sliding: {{limit: {LIMIT}, per: 24h, window: sliding}}
  bucket: {{limit: {LIMIT}, per: 24h, window: bucket}}
routes:
- GET /fixed: {{quotas: [fixed]}}
- GET /sliding: {{quotas: [sliding]}}
- GET /bucket: {{quotas: [bucket]}}
- GET /free: {{}}
"""
WINDOWS = ["fixed", "sliding", "bucket"]
Turn = Callable[[str], None]


@pytest.fixture(scope="module")
def shared(start_shared_sidecar: StartSidecar, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sidecar, Turn]:
    """A sidecar, and a function that sets its clock (`+3d`: three days from now). Its monotonic clock is unchanged."""
    program = Path(needed("faketime")).resolve()
    library = next(program.parents[1].glob("lib/*/faketime/libfaketime.so.1"))
    folder = tmp_path_factory.mktemp("clock")
    file = folder / "clock"

    def turn(offset: str) -> None:
        new = folder / "new"
        new.write_text(offset + "\n", encoding="ascii")
        os.replace(new, file)

    turn("+0")
    environ = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    return start_shared_sidecar(CONFIG, environ=environ), turn


@pytest.fixture
def clocked(shared: tuple[Sidecar, Turn]) -> tuple[Sidecar, Turn]:
    """The same with a correct clock; each test has its own keys and quotas."""
    _, turn = shared
    turn("+0")
    return shared


def passed(sidecar: Sidecar, target: str, key: str) -> int:
    """How many of more requests than are allowed pass; the others get 429."""
    statuses = [sidecar.ask("GET", target, key=key).status for _ in range(LIMIT + 2)]
    assert set(statuses) <= {200, 429}
    return statuses.count(200)


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize("window", WINDOWS)
def test_setting_the_clock_forward_and_back_gives_one_allowance_a_day(
    clocked: tuple[Sidecar, Turn], window: str
) -> None:
    sidecar, turn = clocked
    spender, saver = (sidecar.keys.issue(name).text for name in ("spender", "saver"))
    assert passed(sidecar, f"/{window}", spender) == LIMIT
    turn("+3d")
    assert passed(sidecar, f"/{window}", spender) == LIMIT
    turn("-3d")
    assert passed(sidecar, f"/{window}", spender) == 0
    assert passed(sidecar, f"/{window}", saver) == LIMIT
    turn("-46h")
    assert passed(sidecar, f"/{window}", spender) == LIMIT


@pytest.mark.requirement("R5.3")
def test_a_key_is_as_old_as_the_clock_says(clocked: tuple[Sidecar, Turn]) -> None:
    sidecar, turn = clocked
    key = sidecar.keys.issue("of a day", expires="24h").text
    lasting = sidecar.keys.issue("without end").text
    for offset, status in (("+0", 200), ("-400d", 200), ("+3d", 401), ("+0", 200)):
        turn(offset)
        assert sidecar.ask("GET", "/free", key=key).status == status, offset
        assert sidecar.ask("GET", "/free", key=lasting).status == 200, offset
