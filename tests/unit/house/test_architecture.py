"""The architecture holds: imports only go down, without cycles, every library has one owner, nothing is too big."""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "sidecar"
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "__main__": 10,
    "cli": 9,
    "app": 8,
    "runtime": 7,
    "doctor": 7,
    "admin": 6,
    "ops": 6,
    "forward_auth": 6,
    "proxy": 6,
    "rehearsal": 5,
    "http": 4,
    "gate": 4,
    "store": 4,
    "keys": 3,
    "config": 3,
    "telemetry": 3,
    "usage": 2,
    "limiter": 2,
    "core": 1,
    "__init__": 0,
}
"""A room imports rooms of lower floors, and none of its own floor."""

OWNERS = {
    "yaml": {"config"},
    "msgspec": {
        "config",
        "core",
        "gate",
        "http",
        "keys",
        "limiter",
        "telemetry",
        "usage",
        "proxy",
        "store",
        "admin",
        "rehearsal",
    },
    "aiosqlite": {"store"},
    "sqlite3": {"store"},
    "asyncpg": {"store"},
    "prometheus_client": {"telemetry", "usage", "runtime"},
    "aiohttp": {"http", "proxy", "forward_auth", "ops", "admin", "runtime", "cli"},
    "jinja2": {"admin"},
    "httptools": {"proxy"},
    "redis": {"limiter"},
    "hiredis": {"limiter"},
    "click": {"cli"},
    "uvloop": {"cli"},
    "opentelemetry": {"telemetry"},
}
PURE = {"asyncio", "time", "os", "sys", "socket", "random", "secrets", "threading", "pathlib", "io", "subprocess"}
MOST_MODULES, MOST_LINES, FEWEST_LINES, LONGEST_FUNCTION = 240, 450, 40, 40
MOST_PROTOCOLS = 20
OF_ONE_PREFIX = 3
"""Files of one room that begin with the same word are a folder."""


def name_of(module: Path) -> str:
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@cache
def tree_of(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


@cache
def nodes_of(module: Path) -> tuple[ast.AST, ...]:
    """Walked once for all tests: the package has half a million."""
    return tuple(ast.walk(tree_of(module)))


def imports(module: Path) -> Iterator[str]:
    """Those at the top of a file and those within functions."""
    for node in nodes_of(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield node.module or ""


def edges() -> dict[str, set[str]]:
    return {name_of(module): {found for found in imports(module) if found.startswith("sidecar")} for module in MODULES}


def test_imports_only_go_down_without_cycles() -> None:
    graph = edges()
    assert {room_of(name) for name in graph} == FLOORS.keys()
    assert [
        f"{name} imports {found}"
        for name, wanted in graph.items()
        for found in wanted
        if room_of(found) != room_of(name) and FLOORS[room_of(found)] >= FLOORS[room_of(name)]
    ] == []
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for found in graph.get(name, ()):
                visit(found, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_every_library_has_its_owners_and_the_core_is_pure() -> None:
    strays = [
        f"{name_of(module)} imports {found}"
        for module in MODULES
        for found in imports(module)
        if room_of(name_of(module)) not in OWNERS.get(found.split(".")[0], {room_of(name_of(module))})
    ]
    impure = [
        f"{name_of(module)}:{getattr(node, 'lineno', 0)}"
        for module in (PACKAGE / "core").glob("*.py")
        for node in nodes_of(module)
        if isinstance(node, ast.AsyncFunctionDef | ast.Await)
        or (isinstance(node, ast.Import) and {alias.name.split(".")[0] for alias in node.names} & PURE)
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PURE)
    ]
    assert strays == [] and impure == []


def test_no_private_name_of_a_library_is_used() -> None:
    """Whatever is reached by `._name` is defined somewhere in the package itself."""
    ours = {
        name
        for module in MODULES
        for node in nodes_of(module)
        for name in defined_by(node)
        if name.startswith("_") and not name.startswith("__")
    }
    strays = [
        f"{name_of(module)}:{node.lineno} {name}"
        for module in MODULES
        for node in nodes_of(module)
        for name in private_names_of(node)
        if name not in ours
    ]
    assert strays == []


def defined_by(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
            yield name
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            yield name
        case ast.Constant(value=str(name)):
            yield name  # In __slots__.


def private_names_of(node: ast.AST) -> Iterator[str]:
    names: list[str] = []
    match node:
        case ast.Attribute(attr=name):
            names = [name]
        case ast.ImportFrom(module=str(module), names=aliases) if not module.startswith("sidecar"):
            names = [alias.name for alias in aliases] + module.split(".")
        case ast.Import(names=aliases):
            names = [part for alias in aliases for part in alias.name.split(".")]
    for name in names:
        if name.startswith("_") and not name.startswith("__") and name != "_replace":  # A named tuple's public name.
            yield name


def test_rooms_files_and_functions_have_a_readable_size() -> None:
    files = [module for module in MODULES if module.name != "__init__.py"]
    assert len(files) <= MOST_MODULES
    assert list(too_big(files)) == []
    words = Counter((module.parent, module.stem.split("_")[0]) for module in files)
    assert [f"{room}: {word}_*" for (room, word), number in words.items() if number >= OF_ONE_PREFIX] == []


def too_big(files: list[Path]) -> Iterator[str]:
    """What is, and what is too small without saying why (`A file of its own: …`)."""
    for module in files:
        lines, tree = module.read_text(encoding="utf-8").count("\n"), tree_of(module)
        if lines > MOST_LINES:
            yield f"{name_of(module)}: {lines} lines"
        if lines < FEWEST_LINES and "A file of its own:" not in (ast.get_docstring(tree) or ""):
            yield f"{name_of(module)}: only {lines} lines"
        for node in nodes_of(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    yield f"{name_of(module)}: {node.name} has {length} lines"


def test_protocols_stand_at_real_seams_only() -> None:
    """Where two implementations meet, or a floor is between; inside a room, classes know each other by name."""
    protocols = [
        f"{name_of(module)}: {node.name}"
        for module in MODULES
        for node in nodes_of(module)
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)
    ]
    assert 0 < len(protocols) <= MOST_PROTOCOLS, protocols


def test_the_gates_story_fits_one_screen() -> None:
    tree = tree_of(PACKAGE / "gate" / "gate.py")
    [decide] = [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef) and node.name == "decide"]
    assert (decide.end_lineno or 0) - decide.body[1].lineno < 25
