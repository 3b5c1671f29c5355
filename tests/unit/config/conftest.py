"""A configuration written to a file, and the result of loading it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest

from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError
from sidecar.config.load import load

MINIMAL = "listen: 127.0.0.1:0\nupstream: http://127.0.0.1:8000\nstore: sqlite:///tmp/keys.db\n"
"""Three lines: appended text begins in line 4."""


class Loading(Protocol):
    def __call__(
        self, text: str | bytes, *, environ: Mapping[str, str] = ..., overrides: Mapping[str, str] = ...
    ) -> Config: ...


class Complaining(Protocol):
    def __call__(
        self, text: str | bytes, *, environ: Mapping[str, str] = ..., overrides: Mapping[str, str] = ...
    ) -> list[str]: ...


@pytest.fixture
def loading(tmp_path: Path) -> Loading:
    def read(
        text: str | bytes, *, environ: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None
    ) -> Config:
        file = tmp_path / "sidecar.yaml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return load(str(file), environ=environ or {}, overrides=overrides or {})

    return read


@pytest.fixture
def problems(loading: Loading, tmp_path: Path) -> Complaining:
    """The error lines of an invalid configuration, without the file's name (`4:3: path: message`)."""

    def complain(
        text: str | bytes, *, environ: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None
    ) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            loading(text, environ=environ or {}, overrides=overrides or {})
        return [str(problem).removeprefix(f"{tmp_path}/sidecar.yaml:") for problem in caught.value.problems]

    return complain
