"""Load on a server, from the other core, and what came of it."""

import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tests.bench.processes import LOAD_CORE, Process, Unavailable
from tests.bench.requests import Requests
from tests.bench.site import Site

CONNECTIONS = 32
_SCRIPT = Path(__file__).with_name("wrk.lua")
_USUAL = Requests()
_APPLIED = itertools.count()
# No slice sends as many, so that what is fresh stays fresh from one slice to the next. Eight hexadecimal digits count.
_FRESH_A_SLICE, _FRESH_NUMBERS = 10_000_000, 16**8


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent. `rate`: requests a second at fixed times; None is as many as are answered."""

    requests: Requests = _USUAL
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
    busy: float
    """CPU seconds a second. Well below 1: the load or the upstream was the limit, not the server."""
    peak_memory_kib: int
    unexpected: int
    """Requests refused that should not be, or the other way round, and those that broke off."""

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def apply(load: Load, server: Process, site: Site, seconds: float) -> Outcome:
    """Raises Unavailable when the load cannot be generated."""
    file = _file(site.folder, load.requests)
    command = _wrk(server.port, file, seconds) if load.rate is None else _open(server.port, file, load.rate, seconds)
    before = server.cpu_seconds()
    told = _run(command)
    spent = server.cpu_seconds() - before
    duration, requests = told["microseconds"] / 1e6, told["requests"]
    return Outcome(
        requests_per_second=requests / duration,
        bytes_per_second=(told["bytes"] + requests * len(load.requests.body)) / duration,
        p50=int(told["p50"]),
        p99=int(told["p99"]),
        cpu_microseconds=spent / max(requests, 1) * 1e6,
        busy=spent / duration,
        peak_memory_kib=server.memory_kib("VmHWM"),
        unexpected=int(told["broken"] + (requests - told["refused"] if load.refused else told["refused"])),
    )


@cache
def _file(folder: Path, requests: Requests) -> Path:
    return requests.write(folder / f"requests-{next(_APPLIED)}")


def _wrk(port: int, file: Path, seconds: float) -> list[str]:
    options = ["-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s", str(_SCRIPT)]
    first = next(_APPLIED) * _FRESH_A_SLICE % _FRESH_NUMBERS
    return ["wrk", *options, f"http://127.0.0.1:{port}", "--", str(file), str(first)]


def _open(port: int, file: Path, rate: int, seconds: float) -> list[str]:
    arguments = [str(port), str(file), str(rate), str(seconds), str(CONNECTIONS)]
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
