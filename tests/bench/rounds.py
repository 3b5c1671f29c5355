"""Rounds of a scenario: every contestant in turn, there and back again, so that a slow minute is everybody's."""

import contextlib
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.load import Outcome, apply
from tests.bench.peers import serving
from tests.bench.processes import Process, Unavailable
from tests.bench.scenarios import Contestant, Measure, Scenario
from tests.bench.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of a scenario: outcomes by label, one a round; who was left out, and why."""

    scenario: Scenario
    outcomes: Mapping[str, Sequence[Outcome]]
    idle_kib: Mapping[str, int]
    """Resident memory after the start, before any load."""
    skipped: Mapping[str, str]

    def ratios(self, of: str, to: str, measure: Measure) -> list[float]:
        """Round by round; empty where one of both was left out."""
        pairs = zip(self.outcomes.get(of, ()), self.outcomes.get(to, ()), strict=False)
        return [getattr(one, measure) / max(getattr(other, measure), 1e-9) for one, other in pairs]

    def differences(self, of: str, to: str, measure: Measure) -> list[float]:
        """Round by round; empty where one of both was left out."""
        pairs = zip(self.outcomes.get(of, ()), self.outcomes.get(to, ()), strict=False)
        return [getattr(one, measure) - getattr(other, measure) for one, other in pairs]

    def middle(self, label: str, field: str) -> float:
        return float(median(getattr(outcome, field) for outcome in self.outcomes[label]))


def run(scenario: Scenario, site: Site, *, rounds: int, seconds: float, only: Collection[str]) -> Result:
    """`only`: peers to take part; none named is all of them."""
    outcomes: dict[str, list[Outcome]] = {}
    skipped: dict[str, str] = {}
    wanted = [one for one in scenario.contestants if not only or one.peer in only]
    with contextlib.ExitStack() as stack:
        servers = _start(wanted, site, stack, skipped)
        idle = {peer: server.memory_kib("VmRSS") for peer, server in servers.items()}
        taking_part = [one for one in wanted if one.peer in servers]
        for contestant in taking_part:
            apply(contestant.load, servers[contestant.peer], site, scenario.warmup_seconds)
        for number in range(rounds):
            # What gets slower while a round runs falls on the last ones, so they are the first of the next round.
            for contestant in taking_part if number % 2 == 0 else reversed(taking_part):
                outcome = apply(contestant.load, servers[contestant.peer], site, seconds)
                outcomes.setdefault(contestant.label, []).append(outcome)
                say(f"{scenario.name} {number + 1}/{rounds} {contestant.label}: {_short(outcome)}")
    return Result(scenario=scenario, outcomes=outcomes, idle_kib=idle, skipped=skipped)


def say(text: str) -> None:
    """To whoever watches; the report itself goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def _start(
    wanted: Sequence[Contestant], site: Site, stack: contextlib.ExitStack, skipped: dict[str, str]
) -> dict[str, Process]:
    servers: dict[str, Process] = {}
    for peer in dict.fromkeys(one.peer for one in wanted):
        try:
            servers[peer] = stack.enter_context(serving(site, peer))
        except Unavailable as why:
            skipped[peer] = str(why)
            say(f"{peer} is left out: {why}")
    return servers


def _short(outcome: Outcome) -> str:
    return (
        f"{outcome.requests_per_second:,.0f}/s p50 {outcome.p50} p99 {outcome.p99} us, "
        f"{outcome.cpu_microseconds:.1f} us CPU, {outcome.busy:.0%} busy, {outcome.unexpected} unexpected"
    )
