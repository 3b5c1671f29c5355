"""The house stands: imports only go down, nothing goes round, every library has one owner, nothing grows too big."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sidecar"
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "core": 1,
    "config": 2,
    "keys": 2,
    "limiter": 2,
    "observe": 2,
    "gate": 3,
    "explain": 3,
    "keyrules": 3,
    "compiled": 3,
    "admin": 4,
    "proxy": 4,
    "ops": 4,
    "decision": 4,
    "running": 5,
    "doctor": 5,
    "app": 5,
    "cli": 6,
    "__main__": 6,
    "__init__": 0,
}
BOTTOM = {"sidecar.core.model", "sidecar.core.errors"}
STRANGERS = [{"config", "keys", "limiter", "observe"}, {"proxy", "decision", "ops", "admin"}]
OWNERS = {
    "yaml": {"config"},
    "msgspec": {"config", "core", "keys", "limiter", "observe", "admin"},
    "aiosqlite": {"keys"},
    "sqlite3": {"keys"},
    "prometheus_client": {"observe"},
    "aiohttp": {"proxy", "decision", "ops", "admin", "running", "cli"},
    "jinja2": {"admin"},
    "httptools": {"proxy"},
    "click": {"cli"},
    "uvloop": {"cli"},
    "opentelemetry": {"observe"},
}
PURE = {"asyncio", "time", "os", "sys", "socket", "random", "secrets", "threading", "pathlib", "io", "subprocess"}


def name_of(module: Path) -> str:
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield node.module or ""


def edges() -> dict[str, set[str]]:
    return {name_of(module): {found for found in imports(module) if found.startswith("sidecar")} for module in MODULES}


def test_every_room_has_a_floor() -> None:
    assert {room_of(name_of(module)) for module in MODULES} <= FLOORS.keys()


def test_imports_only_go_down() -> None:
    upward = [
        f"{name} imports {found}"
        for name, wanted in edges().items()
        for found in wanted
        if FLOORS[room_of(found)] > FLOORS[room_of(name)]
    ]
    assert upward == []


def test_rooms_of_one_floor_do_not_know_each_other() -> None:
    met = [
        f"{name} imports {found}"
        for name, wanted in edges().items()
        for found in wanted
        for floor in STRANGERS
        if {room_of(name), room_of(found)} <= floor and room_of(name) != room_of(found)
    ]
    assert met == []


def test_the_words_at_the_bottom_import_nothing_above_them() -> None:
    for name in BOTTOM:
        assert edges()[name] <= BOTTOM


def test_no_import_goes_round() -> None:
    graph = edges()
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for found in graph.get(name, ()):
                visit(found, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_every_library_has_one_owner() -> None:
    strays = [
        f"{name_of(module)} imports {found}"
        for module in MODULES
        for found in imports(module)
        if room_of(name_of(module)) not in OWNERS.get(found.split(".")[0], {room_of(name_of(module))})
    ]
    assert strays == []


@pytest.mark.parametrize("module", sorted((PACKAGE / "core").glob("*.py")), ids=name_of)
def test_the_core_is_pure(module: Path) -> None:
    assert not {found.split(".")[0] for found in imports(module)} & PURE
    tree = ast.parse(module.read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_files_and_functions_stay_readable(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 40, f"{node.name} is too long"


def test_the_gates_story_fits_one_screen() -> None:
    tree = ast.parse((PACKAGE / "gate.py").read_text(encoding="utf-8"))
    [decide] = [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef) and node.name == "decide"]
    assert (decide.end_lineno or 0) - decide.body[1].lineno < 25
