"""Several workers at a time (pytest-xdist), but for tests marked `alone`, which run while no other test does.

A pytest plugin. `alone` is for what measures memory, CPU or time, or opens thousands of connections. The workers agree
by two locks of the kernel, and so do two runs in one checkout: one lock is shared by ordinary tests and taken whole by
one that is alone; the other is the way in, so that one that waits to be alone is not overtaken for ever.
"""

import fcntl
import gc
import os
from collections.abc import Generator, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from xdist.remote import Producer

from tests.harness.workers import Scheduling

_MOST_WORKERS = 8
_LONGEST = (
    "pages",
    "postgresql",
    "process/test_killed_workers",
    "deploy/test_container",
    "reload/test_under_load",
    "admin/test_openapi",
    "docs/test_commands",
    "http/test_attacks",
    "proxy/test_held_bytes",
    "deploy/test_rules",
    "security/test_large_bodies",
    "telemetry/test_tracing",
    "limiter/test_contract",
    "cli/test_keys",
    "cli/test_explain",
    "process/test_standard_streams",
    "deploy/test_kubernetes",
    "cli/test_backup",
    "apis/test_hitl",
    "cli/test_output",
    "forward_auth/test_same_decisions",
    "keys/test_migrations",
    "keys/test_many_keys",
    "process/test_shared_store",
    "differential/test_nginx",
    "limiter/test_shared",
    "proxy/test_known_heads",
    "cli/test_copy",
    "security/test_upstream",
    "admin/test_policy",
    "keys/test_killed_writers",
    "deploy/test_dashboard",
    "deploy/test_series",
    "fuzz/test_valid_requests",
    "fuzz/test_mutated_requests",
    "fuzz/test_mutated_answers",
    "forward_auth/test_questions",
    "keys/test_failing_store",
    "cli/test_doctor_files",
    "cli/test_suggest",
    "config/test_yaml_dangers",
)
"""Files, and two folders, that take 10 seconds or more while four workers share two cores."""
_TOGETHER = ("tests/heavy/pages/", "tests/wire/postgresql/")
"""Folders that stay with one worker each, because their files share what takes long to start: a browser, a server."""
_UNITS = Path(__file__).parents[1] / "unit"
_WAY_IN = Path(__file__)
_ROOM = Path(__file__).with_name("__init__.py")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collected items stay to the end, so the garbage collector need not scan them."""
    worker = getattr(session.config, "workerinput", None)
    if worker is not None:
        number, many = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
        _compile(_modules(session.config)[number::many])
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def _modules(config: pytest.Config) -> list[str]:
    """Those of the tests in the folders that were asked for."""
    folders = [folder for folder in map(config.invocation_params.dir.joinpath, config.args) if folder.is_dir()]
    files = sorted({file for folder in folders for file in folder.resolve().rglob("test_*.py")})
    return [".".join(file.relative_to(config.rootpath).with_suffix("").parts) for file in files]


def _compile(modules: Sequence[str]) -> None:
    """All workers collect all files at once. Where each begins with others, they find what the others compiled."""
    for module in modules:
        # Its errors are reported when it is collected.
        with suppress(Exception, pytest.skip.Exception):
            import_module(module)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one at the end while the others have nothing to do.

    Files with tests that run alone come last: by then nothing takes long, so they do not wait long.
    """
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    alone = {item.path for item in items if item.get_closest_marker("alone")}

    @cache
    def rank(path: Path) -> tuple[bool, int]:
        names = path.parent.name, f"{path.parent.name}/{path.stem}"
        return path in alone, min(ranks.get(name, len(ranks)) for name in names)

    items.sort(key=lambda item: rank(item.path))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for each core, because tests wait as much as they compute: for timeouts, for ends, for other processes.

    The units only compute, so that a second one would only import and collect everything once more.
    """
    asked = [config.invocation_params.dir.joinpath(argument).resolve() for argument in config.args]
    units = all(path.is_relative_to(_UNITS) for path in asked)
    return min((1 if units else 2) * len(os.sched_getaffinity(0)), _MOST_WORKERS)


class _ByFile(Scheduling):
    def _split_scope(self, nodeid: str) -> str:
        folder = next(filter(nodeid.startswith, _TOGETHER), None)
        return folder or super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """As `--dist loadfile`, but for the folders that stay together."""
    return _ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    alone = item.get_closest_marker("alone") is not None
    with _ROOM.open("rb") as room:
        with _WAY_IN.open("rb") as way_in:
            fcntl.flock(way_in, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return (yield)
