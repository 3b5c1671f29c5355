"""The scenarios: who is measured with which load, and what must come of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.bench.load import Load
from tests.bench.peers import UPSTREAM

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
class Target:
    """The median, over the rounds, of the contestants' `measure`, `of` divided by `to`, must be in the bounds."""

    text: str
    of: str
    to: str
    measure: Measure
    at_least: float | None = None
    at_most: float | None = None

    def met(self, ratio: float) -> bool:
        return (self.at_least is None or ratio >= self.at_least) and (self.at_most is None or ratio <= self.at_most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Ratios are of `measure`, each contestant's to the reference's: the first contestant's."""

    name: str
    title: str
    contestants: Sequence[Contestant]
    targets: Sequence[Target] = ()
    measure: Measure = "requests_per_second"
    warmup_seconds: float = 1.0


def _same(load: Load, *peers: str) -> list[Contestant]:
    return [Contestant(label=peer, peer=peer, load=load) for peer in peers]


def _large(name: str, title: str, load: Load) -> Scenario:
    return Scenario(
        name=name,
        title=title,
        contestants=_same(load, REFERENCE, *_OTHERS, UPSTREAM),
        measure="bytes_per_second",
        targets=[
            Target(
                text=f"{title}: bytes a second >= 0.5 x nginx",
                of=REFERENCE,
                to="nginx",
                measure="bytes_per_second",
                at_least=0.5,
            )
        ],
    )


def _refused(kind: str) -> Scenario:
    load = Load(kind=kind, keys=10_000, refused=True)
    return Scenario(
        name=f"refused-{kind}",
        title=f"100 % refused, {kind} keys",
        contestants=_same(load, REFERENCE, "sidecar-unlimited", *_OTHERS),
        targets=[
            Target(
                text=f"refused, {kind} keys, {told}: requests a second >= 1.2 x Envoy",
                of=of,
                to="envoy",
                measure="requests_per_second",
                at_least=1.2,
            )
            for of, told in ((REFERENCE, "as by default (429 past 300 a minute)"), ("sidecar-unlimited", "401 each"))
        ],
    )


def _same_cost(name: str, title: str, few: Contestant, many: Contestant, warmup_seconds: float = 1.0) -> Scenario:
    target = Target(
        text=f"{title}: CPU time per request within 10 %",
        of=many.label,
        to=few.label,
        measure="cpu_microseconds",
        at_most=1.1,
    )
    return Scenario(name=name, title=title, contestants=[few, many], targets=[target], warmup_seconds=warmup_seconds)


_SMALL = Scenario(
    name="small",
    title="small answers",
    contestants=_same(Load(), REFERENCE, "sidecar-log", *_OTHERS, UPSTREAM),
    targets=[
        Target(
            text="small answers: requests a second >= 1.0 x Envoy",
            of=REFERENCE,
            to="envoy",
            measure="requests_per_second",
            at_least=1.0,
        ),
        Target(
            text="small answers: requests a second >= 3 x aiohttp proxy",
            of=REFERENCE,
            to="aiohttp",
            measure="requests_per_second",
            at_least=3.0,
        ),
        Target(
            text="with the access log: at most 10 % slower",
            of="sidecar-log",
            to=REFERENCE,
            measure="requests_per_second",
            at_least=0.9,
        ),
    ],
)
_FIXED = Scenario(
    name="fixed",
    title="1,000 requests a second",
    contestants=_same(Load(rate=1_000), REFERENCE, *_OTHERS, UPSTREAM),
    measure="p99",
    targets=[
        Target(
            text="at 1,000 requests a second: p99 <= 1.2 x Envoy",
            of=REFERENCE,
            to="envoy",
            measure="p99",
            at_most=1.2,
        )
    ],
)
_PARTS = Load(path="/v1/items{n}/7/parts/3")
_ALL: Sequence[Scenario] = (
    _SMALL,
    _FIXED,
    _large("64k", "64 KiB answers", Load(path="/v1/file/64k")),
    _large("10m", "10 MiB answers", Load(path="/v1/file/10m")),
    _large("post", "64 KiB POSTs", Load(path="/v1/sink", method="POST", body_bytes=65_536, keys=100)),
    _refused("unknown"),
    _refused("mistyped"),
    _same_cost(
        "routes",
        "1,000 routes against 1",
        Contestant(label="1 route", peer="sidecar-1-route", load=_PARTS),
        Contestant(label="1,000 routes", peer="sidecar-1000-routes", load=_PARTS),
    ),
    _same_cost(
        "keys",
        "1,000,000 keys against 1,000",
        Contestant(label="1,000 keys", peer="sidecar-1k-keys", load=Load()),
        Contestant(label="1,000,000 keys", peer="sidecar-1m-keys", load=Load()),
    ),
    _same_cost(
        "distinct",
        "100,000 keys in use against 1,000",
        Contestant(label="1,000 in use", peer="sidecar-1k-keys", load=Load()),
        Contestant(label="100,000 in use", peer="sidecar-1m-keys", load=Load(keys=100_000)),
        warmup_seconds=20.0,
    ),
)
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
