"""Bar charts as inline SVG, computed here: templates do not compute, and the page's policy forbids style attributes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CLASSES = ("2xx", "3xx", "4xx", "5xx")
"""Status classes, from the bottom of a bar to its top."""

_SCALE = 1000.0
_SPARK_HEIGHT = 24.0
_GAP = 0.22
_ROUND = (4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A rectangle in units of its chart, and the CSS class of its colour."""

    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of the time axis and its requests by status class (`2xx`). link: empty for none; chosen: marked."""

    label: str
    counts: Mapping[str, int]
    link: str
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One point of the time axis, at full height, with the text that the pointer shows and the address it leads to."""

    x: float
    width: float
    label: str
    link: str
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Stacked bars in a box of 1000 by 1000, which the page stretches."""

    bars: tuple[Bar, ...]
    slots: tuple[Slot, ...]
    top: str
    """The value at the upper edge."""
    ticks: tuple[str, ...]
    """Labels of the time axis, from left to right."""
    kinds: tuple[str, ...]
    """Status classes that occur."""
    label: str
    """A text alternative for screen readers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spark:
    """A row of small bars, 96 by 24."""

    bars: tuple[Bar, ...]
    label: str


def chart(points: Sequence[Point], *, ticks: Sequence[str], span: str) -> Chart:
    totals = [sum(point.counts.values()) for point in points]
    top = _round_up(max(totals, default=0))
    width = _SCALE / max(len(points), 1)
    bars = [bar for i, point in enumerate(points) for bar in _stack(point.counts, i * width, width, _SCALE / top)]
    slots = [
        Slot(
            x=round(i * width, 2),
            width=round(width, 2),
            label=_slot_label(point.label, point.counts),
            link=point.link,
            chosen=point.chosen,
        )
        for i, point in enumerate(points)
    ]
    kinds = tuple(kind for kind in CLASSES if any(point.counts.get(kind) for point in points))
    label = f"{sum(totals):,} requests over {span}"
    return Chart(bars=tuple(bars), slots=tuple(slots), top=f"{top:,}", ticks=tuple(ticks), kinds=kinds, label=label)


def spark(totals: Sequence[int], *, span: str) -> Spark:
    """totals: requests at each point in time. Every non-zero total is visible, however small."""
    top, width = max([1, *totals]), 96.0 / max(len(totals), 1)
    bars = []
    for i, total in enumerate(totals):
        height = max(2.0, total / top * _SPARK_HEIGHT) if total else 1.0
        kind = "s2" if total else "base"
        bars.append(_bar(i * width, _SPARK_HEIGHT - height, width, height, kind))
    return Spark(bars=tuple(bars), label=f"{sum(totals):,} requests over {span}")


def _stack(counts: Mapping[str, int], x: float, width: float, scale: float) -> list[Bar]:
    y, bars = _SCALE, []
    for kind in CLASSES:
        if count := counts.get(kind, 0):
            height = count * scale
            y -= height
            bars.append(_bar(x, y, width, height, f"s{kind[0]}"))
    return bars


def _bar(x: float, y: float, width: float, height: float, kind: str) -> Bar:
    gap = width * _GAP
    return Bar(
        x=round(x + gap / 2, 2), y=round(y, 2), width=round(width - gap, 2), height=round(max(height, 0), 2), kind=kind
    )


def _slot_label(name: str, counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    parts = ", ".join(f"{counts[kind]:,} {kind}" for kind in CLASSES if counts.get(kind))
    return f"{name}: {total:,} requests{f' ({parts})' if parts else ''}"


def _round_up(largest: int) -> int:
    """Return a round number that is not smaller, and at least 4, for the top of an axis."""
    step, minimum = 1, max(largest, 4)
    while minimum > 100 * step:
        step *= 10
    return next(factor * step for factor in _ROUND if factor * step >= minimum)
