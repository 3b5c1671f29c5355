"""Requirements are markers: no test carries an id in its name."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
FUNCTION = re.compile(r"def (test_\w+)")
ID_IN_NAME = re.compile(r"test_[A-Za-z]\d+_")


def test_no_test_and_no_file_of_tests_has_a_requirement_in_its_name() -> None:
    files = list(TESTS.rglob("test_*.py"))
    names = [name for file in files for name in FUNCTION.findall(file.read_text(encoding="utf-8"))]
    assert len(names) > 1000
    assert [name for name in [*names, *(file.name for file in files)] if ID_IN_NAME.match(name)] == []
