"""Requirements are markers: no test carries an id in its name."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
ID_IN_NAME = re.compile(r"test_[A-Za-z]\d+_")


def test_no_test_and_no_file_of_tests_has_a_requirement_in_its_name() -> None:
    named = [
        f"{file.name}: {node.name}"
        for file in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ID_IN_NAME.match(node.name)
    ]
    named += [file.name for file in TESTS.rglob("test_*.py") if ID_IN_NAME.match(file.name)]
    assert named == []
