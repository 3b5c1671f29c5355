"""What the benchmark says: tables for people, JSON for machines, and whether the targets are met."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from tests.bench.peers import UPSTREAM
from tests.bench.rounds import Result
from tests.bench.scenarios import IDLE_MEMORY, REFERENCE, Bar, Measure, Target

_UNITS: Mapping[Measure, str] = {
    "requests_per_second": "requests a second",
    "bytes_per_second": "bytes a second",
    "p99": "p99",
    "cpu_microseconds": "CPU time per request",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A bar and what was measured; `ratio` is the median and `ratios` are the rounds', None and empty where it was not.

    Of some targets these are differences.

    cpu_ratio: of CPU time per request, for a throughput target, the other way round, so that it reads alike. It is
    what the ratio would be if nobody else used the machine.
    """

    text: str
    bar: Bar
    ratios: Sequence[float]
    cpu_ratio: float | None = None

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "not measured"
        if self.bar.stretched(self.ratio):
            return "met, stretch too"
        return "met" if self.bar.met(self.ratio) else "NOT met"

    def line(self) -> str:
        by_cpu = f"by CPU {self.cpu_ratio:.2f}" if self.cpu_ratio is not None else ""
        return f"  {self.verdict:18}{_spread(self.ratios):24}{by_cpu:14}{self.bar!s:24}{self.text}"

    def as_json(self) -> dict[str, Any]:
        more = {"ratio": self.ratio, "verdict": self.verdict, "cpu_ratio": self.cpu_ratio}
        return {"text": self.text, **asdict(self.bar), "ratios": list(self.ratios), **more}


def judge(results: Sequence[Result]) -> list[Judgement]:
    judged = [_judge(result, target) for result in results for target in result.scenario.targets]
    return [*judged, _judge_idle(results)]


def _judge(result: Result, target: Target) -> Judgement:
    by_cpu = result.ratios(target.to, target.of, "cpu_microseconds") if "_per_second" in target.measure else []
    compared = result.differences if target.difference else result.ratios
    return Judgement(
        text=target.text,
        bar=target.bar,
        ratios=compared(target.of, target.to, target.measure),
        cpu_ratio=median(by_cpu) if by_cpu else None,
    )


def text(results: Sequence[Result]) -> str:
    lines = [line for result in results for line in _scenario(result)]
    lines += ["Idle memory (resident, after the start)", *_idle_lines(results), ""]
    lines += ["Bars (median ratio, least and most of the rounds)"]
    return "\n".join([*lines, *(judgement.line() for judgement in judge(results))])


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    return {
        "machine": {"python": platform.python_version(), "system": platform.platform()},
        "scenarios": [_scenario_json(result) for result in results],
        "idle_memory_kib": _idle(results),
        "targets": [one.as_json() for one in judge(results)],
    }


def _scenario(result: Result) -> Iterator[str]:
    scenario = result.scenario
    yield scenario.title
    header = f"  {'':20}{'req/s':>9}{'MiB/s':>9}{'p50 us':>10}{'p99 us':>11}{'CPU us':>9}{'busy':>7}"
    yield header + f"{'peak MiB':>9}{'unexpected':>11}"
    for label, outcomes in result.outcomes.items():
        values = {name: result.middle(label, name) for name in outcomes[0].as_json()}
        yield (
            f"  {label:20}{values['requests_per_second']:9,.0f}{values['bytes_per_second'] / 2**20:9,.1f}"
            f"{values['p50']:10,.0f}{values['p99']:11,.0f}{values['cpu_microseconds']:9.1f}{values['busy']:7.0%}"
            f"{max(one.peak_memory_kib for one in outcomes) / 1024:9.1f}{sum(one.unexpected for one in outcomes):11,}"
        )
    yield from (f"  {peer:20}left out: {why}" for peer, why in result.skipped.items())
    yield from _ratio_lines(result)
    yield ""


def _ratio_lines(result: Result) -> Iterator[str]:
    labels = list(result.outcomes)
    for label in labels[1:]:
        measures = [result.scenario.measure]
        # The upstream's CPU time is no proxy's.
        measures += ["cpu_microseconds"] if label != UPSTREAM and "cpu_microseconds" not in measures else []
        told = (f"{_UNITS[measure]} {_spread(result.ratios(labels[0], label, measure))}" for measure in measures)
        yield f"    {labels[0]} / {label + ':':20}{'   '.join(told)}"


def _spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


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
    idle = _idle(results)
    known = REFERENCE in idle and "envoy" in idle
    ratios = [idle[REFERENCE] / idle["envoy"]] if known else []
    return Judgement(text="idle memory, of Envoy's", bar=IDLE_MEMORY, ratios=ratios)
