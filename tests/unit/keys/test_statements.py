"""Statements are written once: in the SQL of every engine, over the port, except for engine-specific ones."""

import ast
import re
import sys
from pathlib import Path

import asyncpg
import pytest

import sidecar.store
from sidecar.keys.ports import StoreUnavailable
from sidecar.store.connection import DuplicateRow
from sidecar.store.postgresql.statements import LostConnection, arguments, reported, translated, unavailable
from sidecar.store.store import open_store
from tests.unit.keys.making import Clock, ignore

STORE = Path(sidecar.store.__file__).parent
COMPOSED = ("__init__", "store", "file")
"""Those that name an engine: stores are put together there."""
SHARED = sorted(module for module in STORE.glob("*.py") if module.stem not in COMPOSED)
OWN_WORDS = re.compile(
    r"\b(PRAGMA|INDEXED BY|OR REPLACE|OR IGNORE|rowid|json_\w+|random\(|datetime\(|total\(|MATCH|sqlite_\w+)|\?\d"
)


def imports_of(tree: ast.Module) -> set[str]:
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return modules | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


@pytest.mark.parametrize("module", SHARED, ids=lambda module: module.stem)
def test_shared_statements_know_no_engine(module: Path) -> None:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    assert [name for name in imports_of(tree) if "sqlite" in name or "postgresql" in name] == []
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text for text in texts if OWN_WORDS.search(text)] == []


def test_the_parts_are_shared() -> None:
    assert [module.stem for module in SHARED] == [
        "audit",
        "connection",
        "imports",
        "keys",
        "records",
        "tables",
        "usage",
    ]


TRANSLATED = {
    "SELECT 1": ("SELECT 1", None),
    "a = ? AND b < ?": ("a = $1 AND b < $2", None),
    "a IN (?, ?, ?) AND b = ? LIMIT ?": ("a = ANY($1) AND b = $2 LIMIT $3", (3, 0, 0)),
    "(a, b) IN (SELECT a, b FROM t WHERE c < ?) AND d IN (?)": (
        "(a, b) IN (SELECT a, b FROM t WHERE c < $1) AND d = ANY($2)",
        (0, 1),
    ),
    "VALUES (?, ?)": ("VALUES ($1, $2)", None),
}


@pytest.mark.parametrize("sql", TRANSLATED)
def test_a_statement_has_numbers_and_arrays_in_postgresql(sql: str) -> None:
    assert translated(sql) == TRANSLATED[sql]


def test_values_are_grouped_as_the_statement_takes_them() -> None:
    _, sizes = translated("a IN (?, ?) AND b = ? AND c IN (?)")
    assert arguments(sizes, ("x", "y", 5, b"z")) == [["x", "y"], 5, [b"z"]]


@pytest.mark.parametrize(
    ("given", "stored"), [("a\0b", "a\ufffdb"), ("\ud800é", "?é"), ("é", "é"), (b"\0", b"\0"), (None, None)]
)
def test_what_text_of_postgresql_cannot_hold_is_replaced(given: object, stored: object) -> None:
    assert [*arguments(None, (given,))] == [stored]


def test_an_error_never_repeats_the_servers_message() -> None:
    error = asyncpg.UniqueViolationError("duplicate key value violates unique constraint: (digest)=(\\xsecret)")
    with pytest.raises(DuplicateRow) as caught, reported("postgresql://db/keys"):
        raise error
    assert "secret" not in str(caught.value) and caught.value.__cause__ is None


LOST = (asyncpg.ConnectionDoesNotExistError(), asyncpg.AdminShutdownError(), ConnectionRefusedError())
GIVEN_UP = asyncpg.InterfaceError("cannot perform operation: connection is closed")


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_the_rights_of_different_connections_are_distinguished(error: Exception) -> None:
    assert isinstance(unavailable(error, "x"), LostConnection)
    assert not isinstance(unavailable(asyncpg.InvalidPasswordError(), "x"), LostConnection)


def test_a_connection_that_was_given_up_is_told_as_a_server_out_of_reach() -> None:
    told = unavailable(GIVEN_UP, "postgresql://db/keys")
    assert isinstance(told, LostConnection)
    assert "cannot be reached" in str(told) and "log" not in str(told)


async def test_without_its_library_postgresql_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sidecar.store.postgresql", None)
    with pytest.raises(StoreUnavailable, match=r"install the extra `postgres`"):
        await open_store("postgresql://db/keys", create=False, clock=Clock(), timings=ignore)
