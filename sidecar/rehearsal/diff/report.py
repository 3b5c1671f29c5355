"""Compares two configurations, and reports the diff and a replay: as JSON, as text, and as Markdown for reviews."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sidecar.config.build.config import Config
from sidecar.core.errors import Reason
from sidecar.core.routing import NO_ROUTE
from sidecar.core.units import counted
from sidecar.rehearsal.diff.changes import Change, Detail, Effect
from sidecar.rehearsal.diff.outcomes import Outcome
from sidecar.rehearsal.diff.replay import SHOWN_OF_HASH, Count, Example, Group, GroupKey, NotJudged, Replay
from sidecar.rehearsal.diff.routes import route_changes
from sidecar.rehearsal.diff.sections import Sections
from sidecar.rehearsal.recorded import LineCounts

_ORDER = ("opens and closes", "opens", "closes", "changes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """The changes from one configuration to another; those that open or close something come first."""

    old: Config
    new: Config
    changes: Sequence[Change]

    def having(self, effect: Effect) -> Sequence[Change]:
        return [change for change in self.changes if effect in change.effects]

    @property
    def others(self) -> Sequence[Change]:
        """Those that neither open nor close anything."""
        return [change for change in self.changes if not change.effects]

    @property
    def summary(self) -> str:
        """`2 open, 1 closes, 3 other changes`."""
        if not self.changes:
            return "no change"
        opens, closes = len(self.having("opens")), len(self.having("closes"))
        others = counted(len(self.others), "other change")
        return f"{opens} {_verb(opens, 'open')}, {closes} {_verb(closes, 'close')}, {others}"


def _verb(number: int, verb: str) -> str:
    return f"{verb}s" if number == 1 else verb


def compare(old: Config, new: Config) -> Diff:
    """Names of quotas, plans and scopes matter, because keys refer to them; names of routes, their order and places do
    not.
    """
    changes = [*route_changes(old, new), *Sections(old, new).changes()]
    return Diff(old=old, new=new, changes=sorted(changes, key=lambda change: _ORDER.index(change.effect)))


_MOST_ROWS: Final = 40
"""The number of rows in a table for people; JSON has all rows. A comment on GitHub has at most 65,536 characters."""
_EXAMPLES: Final = 2

WHY_NOT: Final[Mapping[NotJudged, str]] = {
    "redacted": "their path is redacted",
    "cut": "their path is cut",
    "wrong key": "refused for a wrong key, and still are",
    "malformed": "refused before any policy applies, and still are",
    "fault": "the store failed",
    "preflight": "CORS preflights",
    "without scopes": "logged by an older version, without scopes",
    "unknown reason": "with an unknown reason",
}
NEVER_JUDGED: Final = "Quotas, headers and bodies are not judged."


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A replayed log. problem: why it was not read to its end; empty if it was."""

    log: str
    counts: LineCounts
    replay: Replay
    problem: str = ""


# JSON.


def as_json(diff: Diff, replayed: Replayed | None) -> dict[str, Any]:
    """`old`, `new`, `summary`, `changes`, and `replay` (null without one)."""
    return {
        **{name: {"config": side.path, "sha256": side.sha256} for name, side in (("old", diff.old), ("new", diff.new))},
        "summary": {
            "opens": len(diff.having("opens")),
            "closes": len(diff.having("closes")),
            "other": len(diff.others),
        },
        "changes": [_change_as_json(change) for change in diff.changes],
        "replay": None if replayed is None else _replay_as_json(replayed),
    }


def _change_as_json(change: Change) -> dict[str, Any]:
    return {
        "section": change.section,
        "what": change.what,
        "kind": change.kind,
        "effects": sorted(change.effects),
        "old": change.old or None,
        "new": change.new or None,
        "details": [
            {"name": detail.name or None, "before": detail.before or None, "after": detail.after or None}
            for detail in change.details
        ],
    }


def _replay_as_json(replayed: Replayed) -> dict[str, Any]:
    replay, counts = replayed.replay, replayed.counts
    return {
        "log": replayed.log,
        "problem": replayed.problem or None,
        "lines": counts.lines,
        "foreign_lines": counts.foreign,
        "long_lines": counts.too_long,
        "first_unread_line": counts.first_unread,
        "sampled": replay.sampled,
        "judged": _count_as_json(replay.judged),
        "not_judged": dict(replay.not_judged),
        "changed": {kind: _count_as_json(count) for kind, count in replay.changed.items()},
        "groups": [_group_as_json(key, group) for key, group in replay.ordered()],
        "beyond_groups": _count_as_json(replay.beyond),
        "over_quota_lines": replay.over_quota,
        "other_configuration_lines": replay.elsewhere,
        "disagreements": [
            {
                "recorded": recorded,
                "judged": judged,
                **_count_as_json(group.count),
                "examples": list(map(_example_as_json, group.examples)),
            }
            for (recorded, judged), group in replay.disagreements.items()
        ],
    }


def _count_as_json(count: Count) -> dict[str, Any]:
    return {"lines": count.lines, "requests": round(count.requests)}


def _group_as_json(key: GroupKey, group: Group) -> dict[str, Any]:
    return {
        "kind": key.kind,
        "key_id": key.key_id,
        "tenant": key.tenant,
        "pass_through": key.pass_through,
        "old": _outcome_as_json(key.old),
        "new": _outcome_as_json(key.new),
        **_count_as_json(group.count),
        "examples": list(map(_example_as_json, group.examples)),
    }


def _outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    return {"reason": outcome.reason, "route": outcome.route, "would_deny": outcome.would_deny}


def _example_as_json(example: Example) -> dict[str, str]:
    return {
        "time": example.time,
        "request_id": example.request_id,
        "method": example.method,
        "path": example.path,
    }


# In a terminal.


def as_text(diff: Diff, replayed: Replayed | None) -> str:
    lines = [f"{_title(diff)}: {diff.summary}"]
    for change in diff.changes:
        lines += ["", f"{change.effect:<8} {change.what}  ({_where(change)})", *_detail_lines(change)]
    if replayed is not None:
        lines += ["", *_replay_lines(replayed)]
    return "\n".join(map(_printable, lines))


def _title(diff: Diff) -> str:
    old, new = (f"{side.path} ({side.sha256[:SHOWN_OF_HASH]})" for side in (diff.old, diff.new))
    return f"{old} → {new}"


def _where(change: Change) -> str:
    places = " → ".join(place for place in (change.old, change.new) if place)
    return f"{change.kind}: {places}" if places else change.kind


def _detail_lines(change: Change) -> Iterator[str]:
    return (f"         {_detail(detail)}" for detail in change.details)


def _detail(detail: Detail) -> str:
    name = f"{detail.name}: " if detail.name else ""
    if detail.before and detail.after:
        return f"{name}{detail.before} → {detail.after}"
    return f"{name}{detail.before or detail.after}"


def _replay_lines(replayed: Replayed) -> Iterator[str]:
    replay = replayed.replay
    yield f"Replay of {replayed.log}: {_changed(replay)}"
    yield from (f"  {note}" for note in _notes(replayed))
    rows = replay.ordered()
    for key, group in rows[:_MOST_ROWS]:
        yield f"  {key.kind:<17} {_number(group.count, replay)}  {_caller(key)}  {_outcomes(key)}"
        yield from (f"    {_example(example)}" for example in group.examples[:_EXAMPLES])
    if len(rows) > _MOST_ROWS:
        yield f"  and {len(rows) - _MOST_ROWS} more groups: see --json"


def _changed(replay: Replay) -> str:
    parts = [f"{_number(count, replay)} {kind}" for kind, count in replay.changed.items() if count.lines]
    return f"{_number(replay.judged, replay)} requests judged, {', '.join(parts) or 'none with a different outcome'}"


def _number(count: Count, replay: Replay) -> str:
    return f"about {count.requests:,.0f}" if replay.sampled else f"{count.lines:,}"


def _notes(replayed: Replayed) -> Iterator[str]:
    replay, counts = replayed.replay, replayed.counts
    if replayed.problem:
        yield f"The log {replayed.problem}."
    if replay.sampled:
        yield f"Numbers are scaled up from the {replay.judged.lines:,} lines of a sample."
    if unread := counts.foreign + counts.too_long:
        yield f"Not requests: {counted(unread, 'line')}, the first is line {counts.first_unread:,}."
    if replay.not_judged:
        whys = (f"{number:,} {WHY_NOT[why]}" for why, number in replay.not_judged.most_common())
        yield f"Not judged: {'; '.join(whys)}."
    yield NEVER_JUDGED
    if replay.over_quota:
        yield f"Over a quota that was only observed: {counted(replay.over_quota, 'line')}. Enforcing it refuses them."
    if replay.elsewhere:
        yield f"Logged under a configuration other than the old one: {counted(replay.elsewhere, 'line')}."
    for (recorded, judged), group in replay.disagreements.items():
        was, is_now = _outcome(recorded), _outcome(judged)
        yield f"The log says {was}, the old configuration {is_now}: {counted(group.count.lines, 'line')}."
    if replay.beyond.lines:
        yield f"Left out, because there are too many groups: {_number(replay.beyond, replay)}."


def _outcome(reason: Reason | None) -> str:
    return "passes" if reason is None else str(reason)


def _caller(key: GroupKey) -> str:
    if key.key_id is None:
        return "a pass-through credential" if key.pass_through else "no key"
    return f"{key.key_id} of {key.tenant}" if key.tenant else key.key_id


def _outcomes(key: GroupKey) -> str:
    old, new = (f"{_route(outcome)}: {_outcome(outcome.reason)}{_observed(outcome)}" for outcome in (key.old, key.new))
    return f"{old} → {new}"


def _route(outcome: Outcome) -> str:
    return "no route" if outcome.route in (None, NO_ROUTE) else str(outcome.route)


def _observed(outcome: Outcome) -> str:
    return "" if outcome.would_deny is None else f" (observed: {outcome.would_deny})"


def _example(example: Example) -> str:
    return f"{example.time} {example.method} {example.path} {example.request_id}".strip()


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


# Markdown, as GitHub and GitLab read it. Text from a log or a file is in code spans, which have no mark-up.

_TICKS: Final = re.compile("`+")


def as_markdown(diff: Diff, replayed: Replayed | None) -> str:
    lines = [f"### Access policy: {diff.summary}", ""]
    lines += _table(("", "requests or option", "what", "where"), diff.changes, _change_cells)
    if replayed is not None:
        replay = replayed.replay
        lines += ["", f"### Replay of {_code(replayed.log)}", "", f"{_changed(replay)}.", ""]
        header = ("", "requests", "key", "route and outcome", "for example")
        lines += _table(header, replay.ordered(), lambda row: _group_cells(row[0], row[1], replay))
        lines += ["", *(f"- {_escaped(note)}" for note in _notes(replayed))]
    sides = " → ".join(_code(f"{side.path} {side.sha256[:SHOWN_OF_HASH]}") for side in (diff.old, diff.new))
    return "\n".join([*lines, "", f"<sub>{sides}</sub>"])


def _table(header: Sequence[str], rows: Sequence[Any], cells: Callable[[Any], Iterable[str]]) -> Iterator[str]:
    if not rows:
        return
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows[:_MOST_ROWS]:
        yield f"| {' | '.join(cells(row))} |"
    if len(rows) > _MOST_ROWS:
        yield f"\n{len(rows) - _MOST_ROWS} more: see `sidecar diff --json`."


def _change_cells(change: Change) -> Iterable[str]:
    details = "<br>".join(_code(_detail(detail)) for detail in change.details) or change.kind
    where = " → ".join(_code(place) for place in (change.old, change.new) if place)
    return f"**{change.effect}**" if change.effects else change.effect, _code(change.what), details, where


def _group_cells(key: GroupKey, group: Group, replay: Replay) -> Iterable[str]:
    outcomes = _code(_outcomes(key))
    examples = "<br>".join(_code(f"{each.method} {each.path}") for each in group.examples[:1])
    return f"**{key.kind}**", _number(group.count, replay), _code(_caller(key)), outcomes, examples


def _code(text: str) -> str:
    text = _printable(text).replace("|", "\\|")
    longest = max((len(ticks) for ticks in _TICKS.findall(text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{text}{space}{fence}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|@#])", r"\\\1", _printable(text))
