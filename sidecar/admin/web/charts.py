"""Bars of an inline SVG, computed here because a template should not and a style attribute may not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CLASSES = ("2xx", "3xx", "4xx", "5xx")
"""Classes of status from the bottom of a bar to its top; what is in none of them (1xx) counts as the first."""

_SCALE = 1000.0
_SPARK_HEIGHT = 24.0
_GAP = 0.22
_ROUND = (4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A rectangle in units of its chart, and the class of its colour."""

    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One point of the time axis: the whole height, for the pointer, and what it tells."""

    x: float
    width: float
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Stacked bars in a box of 1000 by 1000, stretched to whatever room there is."""

    bars: tuple[Bar, ...]
    slots: tuple[Slot, ...]
    top: str
    """What the upper edge stands for."""
    ticks: tuple[str, ...]
    """Labels of the time axis, from its beginning to its end."""
    kinds: tuple[str, ...]
    """Classes of status that occur."""
    said: str
    """The whole in a sentence, for those who do not see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spark:
    """A line of small bars, 96 by 24."""

    bars: tuple[Bar, ...]
    said: str


def chart(points: Sequence[tuple[str, Mapping[str, int]]], *, ticks: Sequence[str], span: str) -> Chart:
    """points: label of each point of time, and its requests by class of status (`2xx`)."""
    totals = [sum(counts.values()) for _, counts in points]
    top = _round_up(max(totals, default=0))
    width = _SCALE / max(len(points), 1)
    bars = [bar for i, (_, counts) in enumerate(points) for bar in _stack(counts, i * width, width, _SCALE / top)]
    slots = [
        Slot(x=round(i * width, 2), width=round(width, 2), said=_told(label, counts))
        for i, (label, counts) in enumerate(points)
    ]
    kinds = tuple(kind for kind in CLASSES if any(counts.get(kind) for _, counts in points))
    said = f"{sum(totals):,} requests over {span}"
    return Chart(bars=tuple(bars), slots=tuple(slots), top=f"{top:,}", ticks=tuple(ticks), kinds=kinds, said=said)


def spark(totals: Sequence[int], *, span: str) -> Spark:
    """totals: requests at each point of time; what is not zero is seen, however small."""
    top, width = max([1, *totals]), 96.0 / max(len(totals), 1)
    bars = []
    for i, total in enumerate(totals):
        height = max(2.0, total / top * _SPARK_HEIGHT) if total else 1.0
        kind = "s2" if total else "base"
        bars.append(_bar(i * width, _SPARK_HEIGHT - height, width, height, kind))
    return Spark(bars=tuple(bars), said=f"{sum(totals):,} requests over {span}")


def _stack(counts: Mapping[str, int], x: float, width: float, scale: float) -> list[Bar]:
    reached, bars = _SCALE, []
    for kind in CLASSES:
        if count := counts.get(kind, 0):
            height = count * scale
            reached -= height
            bars.append(_bar(x, reached, width, height, f"s{kind[0]}"))
    return bars


def _bar(x: float, y: float, width: float, height: float, kind: str) -> Bar:
    gap = width * _GAP
    return Bar(
        x=round(x + gap / 2, 2), y=round(y, 2), width=round(width - gap, 2), height=round(max(height, 0), 2), kind=kind
    )


def _told(label: str, counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    parts = ", ".join(f"{counts[kind]:,} {kind}" for kind in CLASSES if counts.get(kind))
    return f"{label}: {total:,} requests{f' ({parts})' if parts else ''}"


def _round_up(most: int) -> int:
    """At least 4, and a number that one can say, so that an axis ends well."""
    step, least = 1, max(most, 4)
    while least > 100 * step:
        step *= 10
    return next(factor * step for factor in _ROUND if factor * step >= least)
