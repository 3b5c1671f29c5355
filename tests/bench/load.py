"""Load on a server, from the other core, and what came of it."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.processes import LOAD_CORE, Process, Unavailable
from tests.bench.site import Site

CONNECTIONS = 32
_SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent. `rate`: requests a second at fixed times; None is as many as are answered."""

    path: str = "/v1/items"
    """{n} counts from 0 to 999."""
    method: str = "GET"
    body_bytes: int = 0
    keys: int = 1_000
    kind: str = "good"
    """Of the keys: good, unknown or mistyped."""
    rate: int | None = None
    refused: bool = False
    """Whether every request is to be refused; otherwise none may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one round with one peer. p50 and p99 in microseconds, also CPU time per request."""

    requests_per_second: float
    bytes_per_second: float
    p50: int
    p99: int
    cpu_microseconds: float
    peak_memory_kib: int
    unexpected: int
    """Requests refused that should not be, or the other way round, and those that broke off."""

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def apply(load: Load, server: Process, site: Site, seconds: float) -> Outcome:
    """Raises Unavailable when the load cannot be generated."""
    keys = site.keys_file(load.kind, load.keys)
    command = _wrk(load, server.port, keys, seconds) if load.rate is None else _open(load, server.port, keys, seconds)
    before = server.cpu_seconds()
    told = _run(command)
    spent = server.cpu_seconds() - before
    duration, requests = told["microseconds"] / 1e6, told["requests"]
    return Outcome(
        requests_per_second=requests / duration,
        bytes_per_second=(told["bytes"] + requests * load.body_bytes) / duration,
        p50=int(told["p50"]),
        p99=int(told["p99"]),
        cpu_microseconds=spent / max(requests, 1) * 1e6,
        peak_memory_kib=server.memory_kib("VmHWM"),
        unexpected=int(told["broken"] + (requests - told["refused"] if load.refused else told["refused"])),
    )


def _wrk(load: Load, port: int, keys: Path, seconds: float) -> list[str]:
    options = ["-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s", str(_SCRIPT)]
    arguments = [load.method, load.path, str(load.body_bytes), str(keys)]
    return ["wrk", *options, f"http://127.0.0.1:{port}", "--", *arguments]


def _open(load: Load, port: int, keys: Path, seconds: float) -> list[str]:
    arguments = [str(port), load.path, str(keys), str(load.rate), str(seconds), str(CONNECTIONS)]
    return [sys.executable, "-m", "tests.bench.openloop", *arguments]


def _run(command: list[str]) -> dict[str, float]:
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{command[0]} is not installed: apt-get install {command[0]}")
    done = subprocess.run(["taskset", "-c", str(LOAD_CORE), *command], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("@"):
            told: dict[str, float] = json.loads(line[1:])
            return told
    raise Unavailable(f"the load generator said: {(done.stderr or done.stdout).strip()[-200:]}")
