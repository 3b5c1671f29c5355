"""The configuration is loaded once its file has stopped changing."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from sidecar.config.build.config import Config
from sidecar.config.load import load
from sidecar.runtime.serving import Reloader
from sidecar.runtime.tasks import SystemClock
from sidecar.telemetry.reloads import Reloads

HALF = """\
listen: 127.0.0.1:8080
upstream: http://127.0.0.1:1
store: sqlite:keys.db
reload: {watch: false}
"""


async def test_a_file_that_changes_while_it_is_read_is_read_again_and_loaded_once(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(HALF, encoding="utf-8")
    taken: list[str] = []
    done = asyncio.Event()

    def read_while_it_is_written() -> Config:
        half = load(str(file), environ={})
        if half.realm != "whole":
            file.write_text(HALF + "realm: whole\n", encoding="utf-8")
        return half

    async def take(config: Config) -> Sequence[str]:
        taken.append(config.realm)
        done.set()
        return ()

    before = load(str(file), environ={})
    reloader = Reloader(read_while_it_is_written, take, lambda: before, reloads=Reloads("", at=0), clock=SystemClock())
    running = asyncio.get_running_loop().create_task(reloader.run())
    reloader.ask()
    await asyncio.wait_for(done.wait(), 20)
    running.cancel()
    assert taken == ["whole"]
