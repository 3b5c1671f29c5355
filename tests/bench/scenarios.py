"""The scenarios: who is measured with which load, and what must come of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tests.bench.keys import Kind
from tests.bench.load import Load
from tests.bench.peers import UPSTREAM
from tests.bench.requests import CLIENT_LINES, FRESH, FRESH_LINES, SMALL_BODY, Requests

Measure = Literal["requests_per_second", "bytes_per_second", "p99", "cpu_microseconds"]
REFERENCE = "sidecar"
_OTHERS = ("envoy", "nginx", "haproxy", "aiohttp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A peer under a load. The label tells it from others in its scenario."""

    label: str
    peer: str
    load: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A ratio of ours to another one's that is to be reached, and a stretch that would be better still."""

    bar: float
    stretch: float | None = None
    at_least: bool = False
    """Whether more is better; otherwise less is."""

    def met(self, ratio: float) -> bool:
        return self._reaches(ratio, self.bar)

    def stretched(self, ratio: float) -> bool:
        return self.stretch is not None and self._reaches(ratio, self.stretch)

    def _reaches(self, ratio: float, bound: float) -> bool:
        return ratio >= bound if self.at_least else ratio <= bound

    def __str__(self) -> str:
        bound = f"{'>=' if self.at_least else '<='} {self.bar:g}"
        return bound if self.stretch is None else f"{bound}, stretch {self.stretch:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The median, over the rounds, of the contestants' `measure`, `of` divided by `to`, is held against the bar.

    difference: `of` less `to` instead.
    """

    text: str
    measure: Measure
    to: str
    bar: Bar
    of: str = REFERENCE
    difference: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Ratios are of `measure`, each contestant's to the reference's: the first contestant's."""

    name: str
    title: str
    contestants: Sequence[Contestant]
    targets: Sequence[Target] = ()
    measure: Measure = "requests_per_second"
    warmup_seconds: float = 1.0


IDLE_MEMORY = Bar(bar=0.8, stretch=0.6)
_LARGE = Bar(bar=0.5, stretch=0.75, at_least=True)
_WITHIN_A_TENTH = Bar(bar=1.1)


def _same(load: Load, *peers: str) -> list[Contestant]:
    return [Contestant(label=peer, peer=peer, load=load) for peer in peers]


def _of_envoys_cpu(text: str, bar: float, stretch: float, of: str = REFERENCE) -> Target:
    text = f"{text}: CPU time per request, of Envoy's"
    return Target(text=text, measure="cpu_microseconds", of=of, to="envoy", bar=Bar(bar=bar, stretch=stretch))


def _small(name: str, title: str, requests: Requests, bar: float, stretch: float) -> Scenario:
    return Scenario(
        name=name,
        title=title,
        contestants=_same(Load(requests=requests), REFERENCE, *_OTHERS, UPSTREAM),
        targets=[_of_envoys_cpu(title, bar, stretch)],
    )


def _large(name: str, title: str, requests: Requests) -> Scenario:
    return Scenario(
        name=name,
        title=title,
        contestants=_same(Load(requests=requests), REFERENCE, *_OTHERS, UPSTREAM),
        measure="bytes_per_second",
        targets=[Target(text=f"{title}: bytes a second, of nginx", measure="bytes_per_second", to="nginx", bar=_LARGE)],
    )


def _refused(kind: Kind, title: str) -> Scenario:
    """Unknown keys are as many as the sidecar remembers, so that they are looked up in its store only once."""
    load = Load(requests=Requests(kind=kind, keys=10_000), refused=True)
    return Scenario(
        name=f"refused-{kind}",
        title=f"all refused: {title}",
        contestants=_same(load, REFERENCE, "sidecar-unlimited", *_OTHERS),
        targets=[
            _of_envoys_cpu(f"refused, {title}, {told}", 0.9, 0.7, of)
            for of, told in ((REFERENCE, "as by default (429 past 300 a minute)"), ("sidecar-unlimited", "401 each"))
        ],
        warmup_seconds=2.0,
    )


def _same_cost(name: str, title: str, few: Contestant, many: Contestant, warmup_seconds: float = 1.0) -> Scenario:
    text = f"{title}: CPU time per request"
    target = Target(text=text, measure="cpu_microseconds", of=many.label, to=few.label, bar=_WITHIN_A_TENTH)
    return Scenario(name=name, title=title, contestants=[few, many], targets=[target], warmup_seconds=warmup_seconds)


_BARE = Requests()
_USUAL = Requests(lines=CLIENT_LINES)
_PARTS = Load(requests=Requests(path="/v1/items{n}/7/parts/3"))
_SAME = Scenario(
    name="same",
    title="the same heads",
    contestants=_same(Load(requests=_USUAL), REFERENCE, "sidecar-log", *_OTHERS, UPSTREAM),
    targets=[
        _of_envoys_cpu("the same heads", 0.75, 0.6),
        Target(
            text="the same heads: requests a second, of a plain aiohttp proxy",
            measure="requests_per_second",
            to="aiohttp",
            bar=Bar(bar=3.0, stretch=4.5, at_least=True),
        ),
        Target(
            text="with the access log: requests a second, of without",
            measure="requests_per_second",
            of="sidecar-log",
            to=REFERENCE,
            bar=Bar(bar=0.9, stretch=0.95, at_least=True),
        ),
    ],
)
_FIXED = Scenario(
    name="fixed",
    title="1,000 requests a second",
    contestants=_same(Load(requests=_USUAL, rate=1_000), REFERENCE, *_OTHERS, UPSTREAM),
    measure="p99",
    targets=[
        Target(
            text="1,000 requests a second: p99, of Envoy's", measure="p99", to="envoy", bar=Bar(bar=1.2, stretch=1.0)
        ),
    ],
)
_REDIS = Scenario(
    name="redis",
    title="quotas in a Redis on this machine",
    contestants=_same(Load(requests=_USUAL), REFERENCE, "sidecar-redis"),
    targets=[
        Target(
            text="quotas in Redis: requests a second, of those in memory",
            measure="requests_per_second",
            of="sidecar-redis",
            to=REFERENCE,
            bar=Bar(bar=0.6, at_least=True),
        ),
    ],
)
_REDIS_FIXED = Scenario(
    name="redis-fixed",
    title="quotas in a Redis on this machine, 1,000 requests a second",
    contestants=_same(Load(requests=_USUAL, rate=1_000), REFERENCE, "sidecar-redis"),
    measure="p99",
    targets=[
        Target(
            text="quotas in Redis, 1,000 requests a second: p99 less that with memory, in us",
            measure="p99",
            of="sidecar-redis",
            to=REFERENCE,
            bar=Bar(bar=1_000),
            difference=True,
        ),
    ],
)
_ALL: Sequence[Scenario] = (
    Scenario(
        name="small",
        title="the same heads, of Host and Authorization only",
        contestants=_same(Load(requests=_BARE), REFERENCE, *_OTHERS, UPSTREAM),
    ),
    _SAME,
    _small("fresh-path", "a fresh path each time", replace(_USUAL, path=f"/v1/items/{FRESH}"), 0.85, 0.7),
    _small(
        "fresh-lines",
        "a fresh trace header and cookie each time",
        replace(_USUAL, lines=(*CLIENT_LINES, *FRESH_LINES)),
        0.85,
        0.7,
    ),
    _small(
        "small-post",
        "small JSON POSTs, in one segment",
        replace(_USUAL, method="POST", body=SMALL_BODY, content_type="application/json"),
        0.9,
        0.75,
    ),
    _refused("none", "no key"),
    _refused("mistyped", "mistyped keys"),
    _refused("unknown", "unknown keys"),
    _refused("revoked", "revoked keys"),
    _FIXED,
    _REDIS,
    _REDIS_FIXED,
    _large("64k", "64 KiB responses", Requests(path="/v1/file/64k")),
    _large("10m", "10 MiB responses", Requests(path="/v1/file/10m")),
    _large("post", "64 KiB POSTs", Requests(path="/v1/sink", method="POST", body=b"x" * 65_536, keys=100)),
    _same_cost(
        "routes",
        "1,000 routes, of 1",
        Contestant(label="1 route", peer="sidecar-1-route", load=_PARTS),
        Contestant(label="1,000 routes", peer="sidecar-1000-routes", load=_PARTS),
    ),
    _same_cost(
        "keys",
        "1,000,000 keys, of 1,000",
        Contestant(label="1,000 keys", peer="sidecar-1k-keys", load=Load()),
        Contestant(label="1,000,000 keys", peer="sidecar-1m-keys", load=Load()),
    ),
    _same_cost(
        "distinct",
        "100,000 keys in use, of 1,000",
        Contestant(label="1,000 in use", peer="sidecar-1k-keys", load=Load()),
        Contestant(label="100,000 in use", peer="sidecar-1m-keys", load=Load(requests=Requests(keys=100_000))),
        warmup_seconds=20.0,
    ),
)
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
