"""Two configurations in, what changes out."""

from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.config.build.config import Config
from sidecar.core.units import counted
from sidecar.rehearsal.diff.changes import Change, Effect
from sidecar.rehearsal.diff.routes import route_changes
from sidecar.rehearsal.diff.sections import Sections

_ORDER = ("opens and closes", "opens", "closes", "changes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What changes from one configuration to another; what opens or closes something stands first."""

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
    """Names of quotas, plans and scopes count, as keys hold them; names of routes, their order and places do not."""
    changes = [*route_changes(old, new), *Sections(old, new).changes()]
    return Diff(old=old, new=new, changes=sorted(changes, key=lambda change: _ORDER.index(change.effect)))
