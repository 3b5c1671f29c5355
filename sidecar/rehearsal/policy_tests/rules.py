"""Which rules of a configuration decided on a request: the line of each, and why they decided so."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError
from sidecar.config.load import read_file
from sidecar.config.yaml_tree import Entries, Node, Scalar, read_nodes
from sidecar.core.errors import Reason
from sidecar.core.model import Route
from sidecar.core.policy import missing_scopes
from sidecar.core.routing import NO_ROUTE
from sidecar.gate.causes import causes
from sidecar.gate.explain import charges, refusal_of, requirements
from sidecar.rehearsal.policy_tests.comparison import forms_of, without
from sidecar.rehearsal.policy_tests.judge import Outcome


class Rule(NamedTuple):
    """A rule that decided. where: `file:line`, empty where no line says so."""

    where: str
    text: str


class Places:
    """Where the sections of a configuration stand that its `Config` does not place. Reads the file when first asked."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._root: Node | None = None

    def of(self, *names: str) -> str:
        """`file:line` of the key that is reached by `names`; empty where there is none."""
        if self._root is None:
            try:
                self._root = read_nodes(read_file(self._path), self._path)
            except ConfigError:
                return ""
        node, found = self._root, None
        for name in names:
            if not isinstance(node, Entries):
                return ""
            found, node = next(((key, value) for key, value in node.entries if key.text == name), (None, node))
            if found is None:
                return ""
        return _where(found)


def _where(key: Scalar | None) -> str:
    return "" if key is None else f"{key.place.file}:{key.place.line}"


def rules(config: Config, outcome: Outcome, places: Places) -> list[Rule]:
    """The route first."""
    return list(_rules(config, outcome, places))


def _rules(config: Config, outcome: Outcome, places: Places) -> Iterator[Rule]:
    yield _of_route(outcome.decision.route, places)
    decision = refusal_of(outcome.decision)
    if decision is None:
        return
    match decision.reason:
        case Reason.QUOTA_EXCEEDED if decision.refused_quota is not None:
            quota = decision.refused_quota.quota
            yield Rule(places.of("quotas", quota.name), f"quota {quota.name}: {decision.refused_quota.limit}")
        case Reason.TOO_MANY_FAILURES:
            yield Rule(places.of("keys", "failures"), "keys.failures")
        case Reason.INSUFFICIENT_SCOPE if decision.route is not None and decision.principal is not None:
            for scope in sorted(missing_scopes(decision.route.policy, decision.principal.scopes)):
                yield Rule(places.of("scopes", scope), f"scope {scope}")


def _of_route(route: Route | None, places: Places) -> Rule:
    if route is None or route.name == NO_ROUTE:
        return Rule(places.of("unmatched") or places.of("routes"), "no route: what matches no route is denied")
    counted = charges(route.policy)
    demands = requirements(route.policy)
    return Rule(route.where, f"{route.name}: {demands}{f'; counts {counted}' if counted else ''}")


def reasons_why(config: Config, outcome: Outcome) -> Sequence[str]:
    """In sentences, why a request is refused, or would be; none where it is allowed. No sentence holds a key."""
    decision, key = refusal_of(outcome.decision), outcome.case.key.text
    if decision is None:
        return ()
    found = [*causes(config, outcome.case.head, key or None, decision)]
    if outcome.observed is not None:
        found.append(f"it goes on all the same, because {outcome.observed.because}")
    return [without(forms_of(config, key), sentence) if key else sentence for sentence in found]
