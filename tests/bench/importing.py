"""How fast `sidecar keys import` is; run by hand, it takes a minute.

    .venv/bin/python -m tests.bench.importing [KEYS]

Imports KEYS (200,000 by default) from JSON lines and from CSV, each into an empty store and then as many again into the
same one, with the command as a user runs it. Prints keys a second (what the clock says, start of the program included)
and the CPU microseconds of a key, over all threads. The aim: 20,000 keys a second.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

_KEYS = 200_000
CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere.db
keys:
  environments: {live: hv_live_, test: hv_test_}
  imported: [{prefix: sk_live_}, {prefix: sk_test_}]
scopes: {"streams:read": Read, "streams:write": Write, "videos:read": Read}
quotas: {general: {limit: 1000, per: hour}}
plans: {pro: {general: 5000}, free: {general: 100}}
routes:
  - GET /v1/**: {scopes: ["streams:read"]}
"""
_TEAMS = ("billing", "search", "mobile", "nightly build", "reporting")


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = folder / "sidecar.yaml"
        config.write_text(CONFIG)
        print(f"{'import of ' + format(count, ',') + ' keys':32}{'keys/s':>10}{'CPU µs/key':>12}")
        for form in ("jsonl", "csv"):
            for turn, into in enumerate(("an empty store", "a store with as many")):
                file = folder / f"{turn}.{form}"
                written(file, range(turn * count, turn * count + count))
                seconds, busy = _imported(config, folder / f"{form}.db", file)
                told = f"{form}, {into}"
                print(f"{told:32}{count / seconds:10,.0f}{busy / count * 1e6:12.1f}", flush=True)


def _imported(config: Path, store: Path, file: Path) -> tuple[float, float]:
    """Seconds that passed, and CPU seconds."""
    command = [sys.executable, "-m", "sidecar", "keys", "import", "-c", str(config), "--store", f"sqlite:///{store}"]
    before, started = os.times(), time.perf_counter()
    subprocess.run([*command, str(file)], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - started, os.times()
    return seconds, after.children_user + after.children_system - before.children_user - before.children_system


def written(file: Path, numbers: range) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        if file.suffix == ".jsonl":
            out.writelines(json.dumps(record) + "\n" for record in map(_record, numbers))
            return
        writer = csv.DictWriter(out, list(_record(0)))
        writer.writeheader()
        writer.writerows(map(_cells, numbers))


def _record(number: int) -> dict[str, Any]:
    mode = "live" if number % 4 else "test"
    return {
        "hash": sha256(str(number).encode()).hexdigest(),
        "name": f"Key {number} {_TEAMS[number % len(_TEAMS)]}",
        "prefix": f"sk_{mode}_{number % 9973:04}",
        "tenant": f"tenant-{number % 1000}",
        "environment": mode,
        "scopes": ["streams:read", "videos:read"] if number % 3 else ["streams:write"],
        "plan": "pro" if number % 5 else "free",
        "metadata": {"user_id": str(number)},
        "created_at": f"2024-{number % 12 + 1:02}-{number % 28 + 1:02}T12:{number % 60:02}:00Z",
    }


def _cells(number: int) -> dict[str, Any]:
    record = _record(number)
    return {**record, "scopes": " ".join(record["scopes"]), "metadata": json.dumps(record["metadata"])}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else _KEYS)
