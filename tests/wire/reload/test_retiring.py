"""A running sidecar retires unused keys, from its start or after a reload."""

import asyncio
import logging
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from sidecar.app import App, running
from sidecar.config.build.config import Config
from sidecar.config.fields import Address
from sidecar.config.load import load
from tests.harness.keys import IssuedKey, Keys, run_cli
from tests.harness.wire import Connection

PATIENCE_SECONDS = 60
CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
keys: {retire_unused: off}
routes: [GET /me: {respond: {id: "{key.id}"}}]
"""
ON = CONFIG.replace("off", "6h")


class Told(logging.Handler):
    """Learns about the first retired key."""

    def __init__(self) -> None:
        super().__init__()
        self.retired = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "retired before its overlap ended" in record.getMessage():
            self.retired.set()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told) -> Keys:
    """With a file that retires nothing yet. Work that normally runs every few minutes runs all the time here."""
    monkeypatch.setattr("sidecar.app.RETIRE_SECONDS", 0.01)
    monkeypatch.setattr(logging.getLogger("sidecar.runtime.maintenance"), "handlers", [told])
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG)
    return Keys(config, tmp_path / "keys.db")


def read(keys: Keys) -> Config:
    return load(str(keys.config), environ={}, overrides={"store": keys.url})


def replaced(keys: Keys, *, hours_ago: int) -> tuple[IssuedKey, str]:
    """A key that was replaced then, and the plaintext of its successor."""
    old = keys.issue("CI")
    new: str = keys.told("rotate", old.id)["key"]
    with closing(sqlite3.connect(keys.store)) as store, store:
        store.execute(
            "UPDATE api_key SET replaced_at = replaced_at - ? WHERE id = ?", (hours_ago * 3_600_000_000, old.id)
        )
    return old, new


async def status(app: App, key: str) -> int:
    address: Address = app.listeners["data"][0]

    def ask() -> int:
        with Connection((address.host, address.port)) as connection:
            return connection.ask("GET", "/me", [("Authorization", f"Bearer {key}")]).status

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize("reloaded", [False, True], ids=["from its start on", "from a reload on"])
async def test_a_running_sidecar_refuses_a_retired_key_and_accepts_its_replacement(
    keys: Keys, told: Told, reloaded: bool
) -> None:
    old, new = replaced(keys, hours_ago=6)
    lately, _ = replaced(keys, hours_ago=5)
    if not reloaded:
        keys.config.write_text(ON)
    async with running(read(keys), read_again=partial(read, keys)) as app:
        if reloaded:
            assert await status(app, new) == 200
            keys.config.write_text(ON)
            app.reload()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await told.retired.wait()
        assert [await status(app, key) for key in (old.text, new, lately.text)] == [401, 200, 200]
    assert keys.told("show", old.id)["status"] == "retired"
    told_of = run_cli("audit", "--action", "retire", environ={"SIDECAR_STORE": keys.url}).stdout
    assert f"sidecar@unused retire {old.id} (" in told_of and "retires_at" in told_of
    assert run_cli("audit", "verify", environ={"SIDECAR_STORE": keys.url}).exit_code == 0
