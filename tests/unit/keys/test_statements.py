"""Statements are written once: in the SQL of every engine, over the port, apart from what is SQLite's own."""

import ast
import re
from pathlib import Path

import pytest

import sidecar.store

STORE = Path(sidecar.store.__file__).parent
SHARED = sorted(module for module in STORE.glob("*.py") if module.stem not in ("__init__", "store"))
OWN_WORDS = re.compile(
    r"\b(PRAGMA|INDEXED BY|OR REPLACE|OR IGNORE|rowid|json_\w+|random\(|datetime\(|total\(|MATCH|sqlite_\w+)|\?\d"
)


def imports_of(tree: ast.Module) -> set[str]:
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return modules | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


@pytest.mark.parametrize("module", SHARED, ids=lambda module: module.stem)
def test_shared_statements_know_no_engine(module: Path) -> None:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    assert [name for name in imports_of(tree) if "sqlite" in name] == []
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text for text in texts if OWN_WORDS.search(text)] == []


def test_the_parts_are_shared() -> None:
    assert [module.stem for module in SHARED] == ["audit", "connection", "keys", "tables", "usage"]
