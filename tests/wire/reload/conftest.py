"""A sidecar with its own file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.running import StartSidecar
from tests.wire.reload.changing import CONFIG, Changing

StartChanging = Callable[..., Changing]


@pytest.fixture
def start_changing(start_sidecar: StartSidecar, tmp_path: Path) -> StartChanging:
    """text: the content of the file."""

    def start(text: str = CONFIG, *, upstream_url: str | None = None) -> Changing:
        file = tmp_path / "sidecar.yaml"
        file.write_text(text, encoding="utf-8")
        return Changing(sidecar=start_sidecar(file, upstream_url=upstream_url), file=file)

    return start


@pytest.fixture
def changing(start_changing: StartChanging) -> Changing:
    return start_changing()
