"""What doctor found, on a terminal and as JSON."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

import click

from sidecar.cli.output import harmless
from sidecar.doctor.report import Named, Severity

_WIDTH: Final = 100
_COLOURS: Final = {
    Severity.OK: "green",
    Severity.WARNING: "yellow",
    Severity.PROBLEM: "red",
    Severity.UNCHECKED: "cyan",
}
_SEVERITY_WIDTH: Final = max(map(len, Severity))
_CHECK_WIDTH: Final = 15
_INDENT: Final = " " * (2 + _SEVERITY_WIDTH + 2 + _CHECK_WIDTH + 2)


def findings_as_json(path: str, found: Sequence[Named]) -> dict[str, Any]:
    """`config`, `counts` by severity, and `findings`."""
    return {
        "config": path,
        "counts": _counts(found),
        "findings": [
            {
                "group": one.group,
                "check": one.check,
                "severity": one.finding.severity.value,
                "saw": one.finding.saw,
                "why": one.finding.why,
                "do": one.finding.do,
            }
            for one in found
        ],
    }


def findings_as_text(path: str, found: Sequence[Named]) -> str:
    """By group, at most 100 columns wide (but for long paths); colours are codes that `click.echo` leaves out."""
    lines = [f"What doctor finds of {harmless(path)}"]
    for group, some in groupby(found, key=lambda one: one.group):
        lines += ["", click.style(group, bold=True)]
        for one in some:
            lines += _lines(one)
    return "\n".join([*lines, "", _summary(_counts(found))])


def _lines(one: Named) -> Iterator[str]:
    finding = one.finding
    severity = click.style(f"{finding.severity.value:<{_SEVERITY_WIDTH}}", fg=_COLOURS[finding.severity])
    first, *rest = _wrapped(finding.saw)
    yield f"  {severity}  {one.check:<{_CHECK_WIDTH}}  {first}"
    yield from (_INDENT + line for line in rest)
    for label, text in (("Why: ", finding.why), ("Do: ", finding.do)):
        if text:
            yield from (_INDENT + line for line in _wrapped(label + text, hanging=len(label)))


def _wrapped(text: str, *, hanging: int = 0) -> list[str]:
    return textwrap.wrap(
        harmless(text),
        _WIDTH - len(_INDENT),
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def _counts(found: Sequence[Named]) -> dict[str, int]:
    counts = Counter(one.finding.severity for one in found)
    return {severity.value: counts[severity] for severity in Severity}


def _summary(counts: dict[str, int]) -> str:
    words = {"problem": ("problem", "problems"), "warning": ("warning", "warnings"), "ok": ("ok", "ok")}
    told = [f"{counts[name]} {words[name][counts[name] != 1]}" for name in words]
    return f"{', '.join(told)}, {counts['unchecked']} could not be checked."
