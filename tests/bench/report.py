"""What the benchmark says: tables for people, JSON for machines, and whether the targets are met."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from tests.bench.peers import UPSTREAM
from tests.bench.rounds import Result
from tests.bench.scenarios import REFERENCE, Measure

_UNITS: Mapping[Measure, str] = {
    "requests_per_second": "requests a second",
    "bytes_per_second": "bytes a second",
    "p99": "p99",
    "cpu_microseconds": "CPU time per request",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A target and what was measured; `ratio` is None where it was not.

    cpu_ratio: of CPU time per request, for a throughput target, the other way round, so that it reads alike. It is
    what the ratio would be if nobody else used the machine.
    """

    text: str
    ratio: float | None
    met: bool | None
    cpu_ratio: float | None = None

    def line(self) -> str:
        if self.ratio is None:
            return f"  {'not measured':36}{self.text}"
        by_cpu = f"(by CPU {self.cpu_ratio:.2f})" if self.cpu_ratio is not None else ""
        return f"  {'met' if self.met else 'NOT MET':8}{self.ratio:8.2f}  {by_cpu:16}  {self.text}"


def judge(results: Sequence[Result]) -> list[Judgement]:
    found = []
    for result in results:
        for target in result.scenario.targets:
            ratios = result.ratios(target.of, target.to, target.measure)
            middle = median(ratios) if ratios else None
            met = None if middle is None else target.met(middle)
            by_cpu = result.ratios(target.to, target.of, "cpu_microseconds") if "_per_second" in target.measure else []
            cpu_ratio = median(by_cpu) if by_cpu else None
            found.append(Judgement(text=target.text, ratio=middle, met=met, cpu_ratio=cpu_ratio))
    return [*found, _judge_idle(results)]


def text(results: Sequence[Result]) -> str:
    lines = [line for result in results for line in _scenario(result)]
    lines += ["Idle memory (resident, after the start)", *_idle_lines(results), "", "Targets (median ratio)"]
    return "\n".join([*lines, *(judgement.line() for judgement in judge(results))])


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    return {
        "machine": {"python": platform.python_version(), "system": platform.platform()},
        "scenarios": [_scenario_json(result) for result in results],
        "idle_memory_kib": _idle(results),
        "targets": [asdict(one) for one in judge(results)],
    }


def _scenario(result: Result) -> Iterator[str]:
    scenario = result.scenario
    yield scenario.title
    yield f"  {'':20}{'req/s':>9}{'MiB/s':>9}{'p50 us':>10}{'p99 us':>11}{'CPU us':>9}{'peak MiB':>9}{'unexpected':>11}"
    for label, outcomes in result.outcomes.items():
        values = {name: result.middle(label, name) for name in outcomes[0].as_json()}
        yield (
            f"  {label:20}{values['requests_per_second']:9,.0f}{values['bytes_per_second'] / 2**20:9,.1f}"
            f"{values['p50']:10,.0f}{values['p99']:11,.0f}{values['cpu_microseconds']:9.1f}"
            f"{max(one.peak_memory_kib for one in outcomes) / 1024:9.1f}{sum(one.unexpected for one in outcomes):11,}"
        )
    yield from (f"  {peer:20}left out: {why}" for peer, why in result.skipped.items())
    yield from _ratio_lines(result)
    yield ""


def _ratio_lines(result: Result) -> Iterator[str]:
    labels = list(result.outcomes)
    for label in labels[1:]:
        for measure in dict.fromkeys((result.scenario.measure, "cpu_microseconds")):
            ratios = result.ratios(labels[0], label, measure)
            if label == UPSTREAM and measure == "cpu_microseconds":
                continue
            rounds = " ".join(f"{ratio:.2f}" for ratio in ratios)
            yield f"    {labels[0]} / {label}, {_UNITS[measure]}: {median(ratios):.2f}   ({rounds})"


def _scenario_json(result: Result) -> dict[str, Any]:
    labels = list(result.outcomes)
    measures = tuple(_UNITS)
    return {
        "name": result.scenario.name,
        "title": result.scenario.title,
        "rounds": {label: [one.as_json() for one in outcomes] for label, outcomes in result.outcomes.items()},
        "median": {
            label: {name: result.middle(label, name) for name in outcomes[0].as_json()}
            for label, outcomes in result.outcomes.items()
        },
        "ratios": {
            f"{labels[0]}/{label}": {measure: result.ratios(labels[0], label, measure) for measure in measures}
            for label in labels[1:]
        },
        "skipped": dict(result.skipped),
    }


def _idle(results: Sequence[Result]) -> dict[str, int]:
    """Of each peer's first start; the upstream is not compared."""
    found: dict[str, int] = {}
    for result in results:
        for peer, kib in result.idle_kib.items():
            if peer != UPSTREAM:
                found.setdefault(peer, kib)
    return found


def _idle_lines(results: Sequence[Result]) -> list[str]:
    return [f"  {peer:20}{kib / 1024:8.1f} MiB" for peer, kib in _idle(results).items()]


def _judge_idle(results: Sequence[Result]) -> Judgement:
    idle, claim = _idle(results), "idle memory below Envoy's"
    if REFERENCE not in idle or "envoy" not in idle:
        return Judgement(text=claim, ratio=None, met=None)
    ratio = idle[REFERENCE] / idle["envoy"]
    return Judgement(text=claim, ratio=ratio, met=ratio < 1)
