"""The examples as a whole."""

import pytest

from tests.harness.keys import run_cli
from tests.harness.running import EXAMPLES


def test_there_is_an_example_for_each_api() -> None:
    assert {path.name for path in EXAMPLES.glob("*.yaml")} == {
        "hakari.yaml",
        "hesedvid.yaml",
        "hitl.yaml",
        "hitorino.yaml",
        "hoko.yaml",
    }


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_an_example_passes_the_check(name: str) -> None:
    checked = run_cli("check", str(EXAMPLES / name))
    assert checked.exit_code == 0, checked.output
