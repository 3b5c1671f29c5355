"""What the tests of several commands share."""

from pathlib import Path

import pytest

from tests.wire.cli.doctoring import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.keys.issue(expires="30d")
    return made
