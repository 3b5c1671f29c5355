"""Killed writers lose nothing that they acknowledged, and leave an intact audit."""

import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.keys.ports import AuditFilter
from tests.unit.keys.making import digest_of, open_store

_KILLS = 10
_ACTIONS = {"added": "issue", "disabled": "disable"}
_WRITER = """
import asyncio, sys
from sidecar.core.model import KeyStatus
from tests.unit.keys.making import ANN, a_key, open_store, set_status

async def main():
    store = await open_store(sys.argv[1])
    number = 0
    while True:
        text = f"{sys.argv[2]}-{number}"
        key = a_key(text, id=f"key_{text}")
        await store.keys.add([key], actor=ANN)
        print("added", text, flush=True)
        if number % 3 == 0:
            await set_status(store.keys, key.id, KeyStatus.DISABLED)
            print("disabled", text, flush=True)
        number += 1

asyncio.run(main())
"""


def _killed(path: str, turn: int) -> list[str]:
    """What a writer said, killed at another place of its work each time: after some lines, in the midst of more."""
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, path, str(turn)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        try:
            told = [writer.stdout.readline() for _ in range(3 + 5 * turn)]
        finally:
            writer.kill()
        return told + writer.stdout.readlines()


@pytest.mark.timeout(600)
async def test_killed_writers_lose_no_acknowledged_change_and_leave_a_whole_audit(tmp_path: Path) -> None:
    path, told = str(tmp_path / "keys.db"), list[str]()
    for turn in range(_KILLS):
        told += _killed(path, turn)
    # What is cut off in the midst of a line was not acknowledged.
    acknowledged = [line.split() for line in told if line.endswith("\n")]
    assert len(acknowledged) >= sum(3 + 5 * turn for turn in range(_KILLS))
    store = await open_store(path, create=False)
    for verb, text in acknowledged:
        key = await store.keys.find({digest_of(text): "sha256"})
        assert key is not None, text
        assert verb == "added" or key.status.value == "disabled", text
    state = await store.audit.verify()
    assert state.problem is None
    assert state.rows >= len(acknowledged)
    changes = {(row.action, row.key_id) for row in await store.audit.rows(AuditFilter(limit=state.rows))}
    assert {(_ACTIONS[verb], f"key_{text}") for verb, text in acknowledged} <= changes
    await store.close()
